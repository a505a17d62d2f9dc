"""The files of deploy/monitoring, read for tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
PROMETHEUS = MONITORING / "prometheus"
GRAFANA = MONITORING / "grafana"
DASHBOARD = GRAFANA / "dashboards" / "convserve.json"


def load(file: Path) -> Any:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    files = sorted((PROMETHEUS / "rules").glob("*.yml"))
    return [rule for file in files for group in load(file)["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return document


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard, without the headings of rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard, with the title of its panel."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def variables() -> dict[str, str]:
    """The variables of the dashboard and their queries."""
    return {one["name"]: one["definition"] for one in dashboard()["templating"]["list"]}


_WORD = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_NO_METRICS = frozenset(
    (
        *("absent", "avg_over_time", "changes", "count", "histogram_quantile", "increase", "min"),
        *("label_values", "rate", "round", "scalar", "sum", "time", "vector", "and", "or"),
    )
)


def metrics_of(query: str) -> set[str]:
    """The names of the metrics in a query."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby\s*\([^)]*\)", "", query)
    if "label_values" in query:
        bare = bare.rpartition(",")[0]
    return {word for word in _WORD.findall(bare) if word not in _NO_METRICS}


def selectors(query: str) -> Iterator[tuple[str, str, str]]:
    """The metric, label and value or pattern of every label that a query selects."""
    for metric, body in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", query):
        for label, value in re.findall(r'(\w+)\s*[=!]~?\s*"([^"]*)"', body):
            yield metric, label, value

"""Renders the report of a load test as one self-contained page: no scripts, no external resources.

The template is `report.html`, with the macros of `macros.html` and the styles of `report.css`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from convserve.loadtest.histogram import Latencies, merged
from convserve.loadtest.report import charts, numbers, server
from convserve.loadtest.report.verdict import SYMBOLS, measure_of, verdict_of
from convserve.loadtest.results import Result, Stage
from convserve.loadtest.running.recorder import MAX_CORE_SHARE, max_lag_ms

FILE: Final = "report.html"

_PERCENTS: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99)
_FEW: Final = 10  # with fewer requests above it, a percentile is mostly chance


@dataclass(frozen=True, slots=True)
class PercentileRow:
    """A latency and how many requests were slower; `by_chance` where too few are."""

    name: str
    ms: float | None
    n_above: int
    by_chance: bool


@dataclass(frozen=True, slots=True)
class Stages:
    """The server's stages beside the client's time. `rest_ms` is None where they do not add up."""

    stages: list[Stage]
    whole_ms: float
    rest_ms: float | None
    chart: charts.Chart | None


def write_report(result: Result, folder: Path) -> Path:
    """Writes `report.html` and returns its path; raises OSError."""
    file = folder / FILE
    file.write_text(render(result), encoding="utf-8")
    return file


def render(result: Result) -> str:
    # Not installed with the service; the extra `loadtest` has it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not a gap in the page
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "number": format,
        "figures": numbers.figures,
        "exact": numbers.exact,
        "ms": numbers.milliseconds,
        "in_ms": numbers.in_ms,
        "objective": numbers.objective,
        "percent": numbers.percent,
        "duration": numbers.duration,
        "bytes": numbers.n_bytes,
        "measure_of": measure_of,
        "svg": Markup,  # `svg.py` escapes what it is given
    }
    return templates.get_template(FILE).render(**_content(result))


def _content(result: Result) -> dict[str, Any]:
    limits = charts.latency_limits(result.settings.objective)
    is_ramp = result.settings.profile == "ramp"
    summary = result.summary
    latencies = merged([summary.latency]) if summary and summary.latency.n else None
    stages = _stages(result)
    return {
        "result": result,
        "settings": result.settings,
        "summary": summary,
        "verdict": verdict_of(result),
        "symbols": SYMBOLS,
        "is_ramp": is_ramp,
        "time": charts.over_time(result.intervals, limits) if result.intervals else None,
        "rate": charts.over_rate(result.trials, result.capacity, limits)
        if is_ramp and result.trials
        else None,
        "percentiles": charts.percentile_curve(latencies, limits) if latencies else None,
        "percentile_rows": percentile_rows(latencies) if latencies else [],
        "stages": stages,
        "stage_class": charts.stage_class,
        "memory": charts.memory(result.server.memory_bytes)
        if len(result.server.memory_bytes) > 1
        else None,
        "facts_of_server": server.facts_of(result),
        "series": server.changes(result),
        "max_lag_ms": _finite(max_lag_ms(summary.latency.p99_ms, ramp=is_ramp))
        if summary
        else None,
        "max_core": MAX_CORE_SHARE,
    }


def percentile_rows(latencies: Latencies) -> list[PercentileRow]:
    rows = []
    for percent in _PERCENTS:
        n_above = latencies.n - max(1, math.ceil(latencies.n * percent / 100 - 1e-9))
        ms = latencies.percentile_ms(percent)
        rows.append(PercentileRow(f"p{percent:g}", ms, n_above, by_chance=n_above < _FEW))
    rows.append(PercentileRow("slowest", latencies.percentile_ms(100), 0, by_chance=True))
    return rows


def _stages(result: Result) -> Stages | None:
    summary, stages = result.summary, server.stages_of(result)
    if not stages or summary is None or summary.latency.mean_ms is None:
        return None
    whole_ms = summary.latency.mean_ms
    rest_ms = whole_ms - sum(stage.mean_ms for stage in stages)
    # Other servers' stages may overlap, or hold each other.
    if rest_ms < 0:
        return Stages(stages, whole_ms, None, None)
    return Stages(stages, whole_ms, rest_ms, charts.stage_bar(stages, rest_ms))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

"""What the server's own metrics say about the time of the test."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from convserve.loadtest.report import numbers
from convserve.loadtest.results import MetricChange, Result, Stage

_NAME: Final = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?", re.DOTALL)
_LABEL: Final = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_MAX_VALUES: Final = 6  # of one label, in one sentence


@dataclass(frozen=True, slots=True)
class Fact:
    """One row of the report; `meaning` explains the value."""

    name: str
    value: str
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """One series: its name without labels, its labels, and its values."""

    family: str
    change: MetricChange
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def difference(self) -> float:
        return self.change.after - self.change.before


def parse(metrics: Sequence[MetricChange]) -> list[Series]:
    series = []
    for change in metrics:
        found = _NAME.fullmatch(change.name)
        family, labels = (found[1], found[2] or "") if found else (change.name, "")
        series.append(Series(family, change, dict(_LABEL.findall(labels))))
    return series


def facts_of(result: Result) -> list[Fact]:
    """Returns what changed on the server, in words. Unknown metrics appear in the table only."""
    series = parse(result.server.metrics)
    seconds = result.server.metrics_seconds
    facts = [
        *_by_label(series, "requests", r".*_requests_total", ("status", "code")),
        *_by_label(series, "pictures", r"convserve_images_total", ("outcome",)),
        *_by_label(series, "refusals", r"convserve_refused_total", ("reason", "code")),
    ]

    runs = _sum(series, "convserve_batch_size_count")
    if runs:
        size = _sum(series, "convserve_batch_size_sum") / runs
        facts.append(
            Fact("pictures in a batch", numbers.figures(size), f"mean of {runs:,.0f} runs")
        )

    lanes = sum(one.change.after for one in series if one.family == "convserve_lanes")
    busy_s = _sum(series, "convserve_lane_busy_seconds_total")
    if seconds and lanes:
        share = numbers.percent(busy_s / (seconds * lanes))
        facts.append(
            Fact("lanes busy", share, f"of the time of {numbers.count(round(lanes), 'lane')}")
        )

    cpu_s = _sum(series, "process_cpu_seconds_total")
    if cpu_s > 0 and seconds:
        used = numbers.figures(cpu_s / seconds)
        facts.append(Fact("cores used", used, "by the server's process"))
    if (cpu_ms := cpu_ms_per_request(result)) is not None:
        facts.append(Fact("CPU time per request", numbers.milliseconds(cpu_ms)))

    for one in series:
        if one.family == "process_resident_memory_bytes":
            before, after = numbers.n_bytes(one.change.before), numbers.n_bytes(one.change.after)
            facts.append(Fact("memory", f"{before} before, {after} after"))
    for name, family in (
        ("lanes replaced", "convserve_lane_restarts_total"),
        ("log records dropped", "convserve_log_records_dropped_total"),
    ):
        if n := _sum(series, family):
            facts.append(Fact(name, f"{n:,.0f}"))
    return facts


def stages_of(result: Result) -> list[Stage]:
    """Returns the stages that follow each other: without a total of other stages or answers."""
    parts = [stage for stage in result.stages if stage.name != "total"]
    return parts or result.stages


def cpu_ms_per_request(result: Result) -> float | None:
    """Returns the server's CPU time over its requests; None where it does not tell both."""
    series = parse(result.server.metrics)
    cpu_s = _sum(series, "process_cpu_seconds_total")
    requests = re.compile(r".*_requests_total")
    n = sum(one.difference for one in series if requests.fullmatch(one.family))
    return 1e3 * cpu_s / n if cpu_s > 0 and n > 0 else None


def changes(result: Result) -> list[Series]:
    """Returns the series for the table: those that changed first, without buckets and births."""
    left_out = ("_bucket", "_created")
    kept = [one for one in parse(result.server.metrics) if not one.family.endswith(left_out)]
    return sorted(kept, key=lambda one: (one.difference == 0, one.change.name))


def _by_label(
    series: Sequence[Series], name: str, family: str, labels: tuple[str, ...]
) -> list[Fact]:
    changed = [one for one in series if one.difference > 0 and re.fullmatch(family, one.family)]
    if not changed:
        return []
    # The load test also asks for metrics and models; what it measures is asked for most.
    most = max(changed, key=lambda one: one.difference)
    changed = [one for one in changed if one.labels.get("route") == most.labels.get("route")]

    label = next((label for label in labels if label in most.labels), None)
    if label is None:
        return []
    counts: dict[str, float] = defaultdict(float)
    for one in changed:
        counts[one.labels.get(label, "")] += one.difference

    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{value}: {n:,.0f}" for value, n in ordered[:_MAX_VALUES]]
    if len(ordered) > _MAX_VALUES:
        shown.append(f"others: {sum(n for _, n in ordered[_MAX_VALUES:]):,.0f}")
    return [Fact(name, "; ".join(shown), f"by {label}")]


def _sum(series: Sequence[Series], family: str) -> float:
    return sum(one.difference for one in series if one.family == family)

"""Statistics of load generator runs. Times are in seconds; a row is one request."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

OK: Final = 200
_REFUSALS: Final = (429, 503)


@dataclass(frozen=True, slots=True)
class Row:
    """One request; its times count from the start of the run."""

    bad: bool  # the picture was broken on purpose
    intended_s: float  # when it should have been sent; latency counts from here
    sent_s: float
    done_s: float  # when its answer was complete or the run ended
    status: int  # of the answer; 0 or less without one, as in `convserve.loadtest.sending.rows`
    retry_after: bool = False  # the answer had that header

    @property
    def latency_s(self) -> float:
        # Infinite without an answer, so that percentiles count it as the slowest of all.
        return math.inf if self.status <= 0 else self.done_s - self.intended_s


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Returns the smallest value that at least `percent` % of the values do not exceed.

    None where there are no values or the value is infinite.
    """
    if not values:
        return None
    value = sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
    return None if math.isinf(value) else value


def summarise(rows: Sequence[Row], seconds: float, deadline_s: float) -> dict[str, Any]:
    """Summarises one run in which requests were sent for `seconds`.

    Latencies are of accepted requests only: a fast refusal must not look like a fast answer.
    Requests with broken pictures count only in `n_bad`, `offered_per_s`, `statuses` and lateness.
    """
    good = [row for row in rows if not row.bad]
    accepted = [row.latency_s for row in good if row.status == OK or row.status <= 0]
    refused = [row for row in good if row.status in _REFUSALS]
    within = sum(row.status == OK and row.latency_s <= deadline_s for row in good)

    return {
        "n": len(good),
        "n_bad": len(rows) - len(good),
        "offered_per_s": len(rows) / seconds,
        "goodput_per_s": within / seconds,
        "statuses": {str(k): v for k, v in sorted(Counter(row.status for row in rows).items())},
        "innocent_failed": sum(row.status != OK for row in good),
        **_milliseconds("latency", accepted),
        "n_refused": len(refused),
        **_milliseconds("refusal", [row.latency_s for row in refused]),
        "retry_after_percent": 100 * sum(row.retry_after for row in refused) / len(refused)
        if refused
        else None,
        **_milliseconds("lateness", [row.sent_s - row.intended_s for row in rows]),
    }


def _milliseconds(name: str, values: Sequence[float]) -> dict[str, float | None]:
    found = {percent: percentile(values, percent) for percent in (50, 90, 99)}
    return {
        f"{name}_p{percent}_ms": None if value is None else 1e3 * value
        for percent, value in found.items()
    }


@dataclass(frozen=True, slots=True)
class Spread:
    """One number over several rounds."""

    median: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def spread(values: Sequence[float | None]) -> Spread | None:
    """Returns median, lowest and highest without the Nones; None if there is nothing else."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Spread(median(there), min(there), max(there), len(there))

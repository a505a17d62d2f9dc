"""Numbers from what a load generator saw. Times are seconds; a row is one request."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

OK: Final = 200
UNANSWERED: Final = 0
"""Status of a request that had no answer when the run was given up."""
BROKEN: Final = -1
"""Status of a request whose connection ended without an answer."""
_REFUSALS: Final = (429, 503)


@dataclass(frozen=True, slots=True)
class Row:
    """One request.

    Attributes:
        bad: the picture was broken on purpose.
        intended_s: when it should have been sent; latency counts from here.
        sent_s: when its first byte was sent.
        done_s: when its answer was complete, or the run was given up.
        status: of the answer, or UNANSWERED or BROKEN.
        retry_after: the answer had that header.
    """

    bad: bool
    intended_s: float
    sent_s: float
    done_s: float
    status: int
    retry_after: bool = False

    @property
    def latency_s(self) -> float:
        """Seconds from the intended time; infinite without an answer."""
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
    """Returns what happened to the requests of good pictures in one run.

    Percentiles are of accepted requests from their intended send time, those without an answer
    counting as infinite. Refusals are apart.

    Args:
        rows: every request, also those of broken pictures, which count in `statuses` only.
        seconds: during which requests were sent.
        deadline_s: answers within it are goodput.
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
    """The same number in several rounds."""

    median: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float]:
        """Returns it as plain numbers."""
        return asdict(self)


def spread(values: Sequence[float | None]) -> Spread | None:
    """Returns median, lowest and highest of the numbers that are there; None if there are none."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    return Spread(median(there), min(there), max(there), len(there))

"""Objectives such as `p99<200ms,errors<0.1%`: parsing, and what a stretch of time missed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from convserve.loadtest.histogram import Latencies

DEFAULT: Final = "p99<200ms,errors<0.1%"
HELP: Final = "terms such as p99<200ms, p99.9<1s, mean<50ms, max<2s and errors<0.1%, with commas"

_LATENCY: Final = re.compile(r"(p\d{1,2}(?:\.\d+)?|mean|max)\s*<\s*(\d+(?:\.\d+)?)\s*(ms|s)")
_ERRORS: Final = re.compile(r"errors\s*<\s*(\d+(?:\.\d+)?)\s*%")


@dataclass(frozen=True, slots=True)
class LatencyTerm:
    """An upper bound on a percentile, the mean or the maximum."""

    measure: str
    limit_ms: float
    text: str

    def miss(self, latencies: Latencies) -> str | None:
        if self.measure == "mean":
            # A request without an answer has no latency that could be averaged.
            found = None if latencies.n_unanswered else latencies.mean_ms
        else:
            percent = 100.0 if self.measure == "max" else float(self.measure[1:])
            found = latencies.percentile_ms(percent)
        if found is None:
            return f"{self.text}: {self.measure} was not answered"
        return None if found < self.limit_ms else f"{self.text}: {self.measure} was {found:,.1f} ms"


@dataclass(frozen=True, slots=True)
class Objective:
    """All terms must hold."""

    text: str
    latency: tuple[LatencyTerm, ...]
    max_error_share: float | None  # errors must be below it

    @property
    def n_needed(self) -> int:
        """Requests that let two of them be slower than the highest percentile."""
        percents = [float(term.measure[1:]) for term in self.latency if term.measure[0] == "p"]
        return round(2 / (1 - max(percents) / 100)) if percents else 1

    def misses(self, latencies: Latencies, n_errors: int, n_sent: int) -> list[str]:
        """Returns a sentence for each term that was missed."""
        found = [miss for term in self.latency if (miss := term.miss(latencies))]
        if self.max_error_share is not None and n_sent:
            share = n_errors / n_sent
            # A limit of 0% allows no error at all; "below 0" would fail every run.
            if share > self.max_error_share or (n_errors and share == self.max_error_share):
                found.append(
                    f"errors<{100 * self.max_error_share:g}%: {n_errors:,} of {n_sent:,} requests "
                    f"failed ({float(f'{100 * share:.3g}'):g}%)"
                )
        return found


def parse_objective(text: str) -> Objective:
    """Raises ValueError with what would be understood."""
    latency: list[LatencyTerm] = []
    max_error_share = None

    for term in filter(None, (part.strip() for part in text.split(","))):
        if found := _LATENCY.fullmatch(term):
            limit_ms = float(found[2]) * (1000 if found[3] == "s" else 1)
            latency.append(LatencyTerm(found[1], limit_ms, term.replace(" ", "")))
        elif found := _ERRORS.fullmatch(term):
            max_error_share = float(found[1]) / 100
            if max_error_share > 1:
                raise ValueError(f"{term!r}: no more than 100% can fail; write {HELP}")
        else:
            raise ValueError(f"{term!r} is not understood; write {HELP}")

    if not latency and max_error_share is None:
        raise ValueError(f"no term in {text!r}; write {HELP}")
    return Objective(text, tuple(latency), max_error_share)

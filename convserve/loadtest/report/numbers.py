"""Numbers as a reader wants them: three digits, a unit, and words for what is missing."""

from __future__ import annotations

import math
import re
from typing import Final

NO_ANSWER: Final = "no answer"

_SPACE: Final = "\N{NO-BREAK SPACE}"  # keeps a unit beside its number


def figures(value: float) -> str:
    """Returns three significant digits, but never fewer than all before the point."""
    if value == 0:
        return "0"
    value = float(f"{value:.3g}") if abs(value) < 1000 else round(value)
    digits = 2 - math.floor(math.log10(abs(value)) + 1e-9)
    return f"{value:,.{max(0, digits)}f}"


def exact(value: float) -> str:
    """Returns a number that somebody chose, such as a rate: 60, not 60.0."""
    return f"{value:,.3f}".rstrip("0").rstrip(".")


def in_ms(value: float | None) -> str:
    """Returns a latency in ms without its unit; None is a request that got no answer."""
    if value is None:
        return NO_ANSWER
    # Clocks and networks are not good enough for more than two digits after the point.
    return f"{value:.2f}" if value < 1 else figures(value)


def milliseconds(value: float | None) -> str:
    return NO_ANSWER if value is None else f"{in_ms(value)}{_SPACE}ms"


def short(value: float) -> str:
    """Returns three significant digits without zeros at the end."""
    return exact(float(figures(value).replace(",", "")))


def rate(value: float) -> str:
    return f"{exact(value)}/s"


def percent(share: float) -> str:
    """Returns a share in percent that is 0% or 100% only if it is exactly that."""
    value = 100 * share
    if 0 < value < 0.01:
        return "under 0.01%"
    if 99.99 < value < 100:
        return "over 99.99%"
    digits = 2 if value < 1 or value > 99 else 1
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") + "%"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{short(seconds)}{_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{n}{_SPACE}{unit}" for n, unit in parts if n)


def objective(terms: str) -> str:
    """Returns the terms of an objective with spaces: p99 < 200 ms, errors < 0.1%."""
    spaced = re.sub(r"\s*([<>]=?)\s*", r" \1 ", terms)
    spaced = re.sub(r"(\d)(ms|s)\b", r"\1 \2", spaced)
    return re.sub(r"\s*,\s*", ", ", spaced)


def count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def n_bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{figures(value / size)}{_SPACE}{unit}"
    return f"{value:,.0f} bytes"

"""SVG as text: elements, scales with round ticks, and axes. Knows nothing of load tests.

Lengths are in pixels of the drawing. Colours are classes of `report.css`, which has one set for light
and one for dark pages.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_TICK_STEPS: Final = (1, 2, 2.5, 5, 10)
_CHARACTER_PX: Final = 6.7  # mean width at the size of `report.css`; only to keep labels apart


def element(name: str, *children: str, **attributes: str | float | None) -> str:
    """Returns an element. Children are markup, attributes are escaped; None leaves one out.

    An underscore in an attribute's name stands for a hyphen, one at its end for nothing.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(children)
    return f"<{name}{written}>{inside}</{name}>" if inside else f"<{name}{written}/>"


def text(content: str, x: float, y: float, anchor: str = "start", class_: str | None = None) -> str:
    return element(
        "text",
        html.escape(content),
        x=x,
        y=y,
        text_anchor=None if anchor == "start" else anchor,
        class_=class_,
    )


def tooltip(content: str) -> str:
    return element("title", html.escape(content))


def points_of(points: Iterable[tuple[float, float]]) -> str:
    """Returns the path through points."""
    return "M" + "L".join(f"{_value(x)} {_value(y)}" for x, y in points)


def drawing(
    identifier: str, title: str, description: str, size: tuple[float, float], body: str
) -> str:
    width, height = size
    return element(
        "svg",
        element("title", html.escape(title), id=f"{identifier}-title"),
        element("desc", html.escape(description), id=f"{identifier}-desc"),
        body,
        viewBox=f"0 0 {_value(width)} {_value(height)}",
        role="img",
        aria_labelledby=f"{identifier}-title {identifier}-desc",
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to pixels, linear or logarithmic. `ticks` are (value, label)."""

    low: float
    high: float
    start_px: float
    end_px: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(max(value, self.low)), math.log(low), math.log(high)
        return self.start_px + (self.end_px - self.start_px) * (value - low) / (high - low)


def linear(
    bounds: tuple[float, float], pixels: tuple[float, float], n_ticks: int, *, snug: bool = False
) -> Scale:
    """Returns a scale with about `n_ticks` round ticks. It ends at one, unless it is snug."""
    low, high = bounds
    if high <= low:
        high = low + (abs(low) or 1)
    step = _step((high - low) / max(1, n_ticks))
    if not snug:
        low, high = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple((step * i, _label(step * i)) for i in range(first, last + 1))
    return Scale(low, high, *pixels, ticks)


def logarithmic(bounds: tuple[float, float], pixels: tuple[float, float]) -> Scale:
    """Returns a scale from one of 1, 2 and 5 times a power of ten to another."""
    low, high = bounds
    digits = (1, 2, 5) if high / low < 500 else (1,)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    values = [digit * 10.0**power for power in powers for digit in digits]

    low = max(value for value in values if value <= low * (1 + 1e-9))
    high = min(value for value in values if value >= high * (1 - 1e-9) and value > low)
    ticks = tuple((value, _label(value)) for value in values if low <= value <= high)
    return Scale(low, high, *pixels, ticks, logarithmic=True)


@dataclass(frozen=True, slots=True)
class Axes:
    """A rectangle to draw in. The y scale starts at its bottom."""

    x: Scale
    y: Scale

    @property
    def left(self) -> float:
        return self.x.start_px

    @property
    def right(self) -> float:
        return self.x.end_px

    @property
    def top(self) -> float:
        return self.y.end_px

    @property
    def bottom(self) -> float:
        return self.y.start_px

    def frame(self, y_title: str, x_title: str = "", *, x_labels: bool = True) -> str:
        """Returns grid lines, tick labels and the axes' titles."""
        parts = [text(y_title, 0, self.top - 12, class_="axis")]
        for value, label in self.y.ticks:
            at = self.y(value)
            class_ = "base" if at == self.bottom else "grid"
            parts.append(
                element(
                    "path",
                    d=f"M{_value(self.left)} {_value(at)}H{_value(self.right)}",
                    class_=class_,
                )
            )
            parts.append(text(label, self.left - 8, at + 4, "end"))

        end = -math.inf
        for value, label in self.x.ticks:
            at, half = self.x(value), len(label) * _CHARACTER_PX / 2
            parts.append(element("path", d=f"M{_value(at)} {_value(self.bottom)}v5", class_="base"))
            if x_labels and at - half > end:
                # The last label would stick out of the drawing.
                anchor = "end" if at + half > self.right + 12 else "middle"
                parts.append(text(label, at, self.bottom + 19, anchor))
                end = at + half + 8
        if x_title:
            parts.append(text(x_title, self.right, self.bottom + 38, "end", "axis"))
        return "".join(parts)

    def line(self, points: Sequence[tuple[float, float] | None], class_: str) -> str:
        """Returns a line with gaps where a point is None. A lonely point becomes a dot."""
        parts = []
        for run in _runs(points):
            placed = [(self.x(x), self.y(y)) for x, y in run]
            if len(placed) == 1:
                ((x, y),) = placed
                parts.append(element("circle", cx=x, cy=y, r=3, class_=f"{class_} dot"))
            else:
                parts.append(element("path", d=points_of(placed), class_=f"{class_} line"))
        return "".join(parts)


def box(
    left: float, top: float, right: float, bottom: float, class_: str | None, *children: str
) -> str:
    width, height = right - left, bottom - top
    return element("rect", *children, x=left, y=top, width=width, height=height, class_=class_)


def cross(x: float, y: float, class_: str, half: float = 4) -> str:
    d = "".join(
        f"M{_value(x - half)} {_value(y - sign * half)}L{_value(x + half)} {_value(y + sign * half)}"
        for sign in (1, -1)
    )
    return element("path", d=d, class_=f"{class_} cross")


def _runs(points: Sequence[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is not None:
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return power * min(step for step in _TICK_STEPS if step * power >= rough * (1 - 1e-9))


def _label(value: float) -> str:
    return f"{value:,.0f}" if value == 0 or abs(value) >= 1000 else f"{value:.4g}"


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return html.escape(value)
    return f"{value:.1f}".removesuffix(".0")

"""The charts of a report. Each is drawn twice, for wide and for narrow screens.

The colours are those of Okabe and Ito. No fact is shown by colour alone: lines differ in width and
dashes, bars in hatching. A percentile that fell on a request without an answer is a gap in its line
with a cross at the top, never a value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final

from convserve.loadtest.histogram import Latencies
from convserve.loadtest.report import numbers
from convserve.loadtest.report.svg import (
    Axes,
    Scale,
    box,
    cross,
    drawing,
    element,
    linear,
    logarithmic,
    points_of,
    text,
    tooltip,
)
from convserve.loadtest.report.verdict import finding
from convserve.loadtest.results import Capacity, Stage, Stretch, Trial

_WIDE_PX: Final = 1080
_HALF_PX: Final = 516  # beside a table
_NARROW_PX: Final = 350
_LOG_FROM: Final = 25.0  # ratio of the highest to the lowest value that a linear axis would squash
_CROSS_PX: Final = 11  # from one to the next
_STAGE_CLASSES: Final = 7  # distinct fills in report.css
_OBJECTIVE: Final = re.compile(r"p(\d+(?:\.\d+)?)\s*<=?\s*(\d+(?:\.\d+)?)\s*(ms|s)\b")

Percentile = tuple[str, str, Callable[[Stretch], float | None]]
_PERCENTILES: Final[tuple[Percentile, ...]] = (
    ("p50", "s1", lambda stretch: stretch.latency.p50_ms),
    ("p90", "s2", lambda stretch: stretch.latency.p90_ms),
    ("p99", "s3", lambda stretch: stretch.latency.p99_ms),
)


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a legend: how it is drawn (a symbol of the template) and what it means."""

    symbol: str
    class_: str
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Drawings of one chart, as markup, and what stands around them."""

    title: str
    legend: tuple[Key, ...]
    wide: str
    narrow: str
    note: str = ""


def latency_limits(objective: str) -> list[tuple[str, float]]:
    """Returns the latencies that an objective names, as (label, ms)."""
    return [
        (f"objective, p{percentile} < {limit} {unit}", float(limit) * (1e3 if unit == "s" else 1))
        for percentile, limit, unit in _OBJECTIVE.findall(objective)
    ]


def _both(
    identifier: str,
    title: str,
    description: str,
    draw: Callable[[float], tuple[float, str]],
    wide_px: float = _WIDE_PX,
) -> tuple[str, str]:
    drawn = []
    for suffix, width in (("wide", wide_px), ("narrow", _NARROW_PX)):
        height, body = draw(width)
        drawn.append(drawing(f"{identifier}-{suffix}", title, description, (width, height), body))
    return drawn[0], drawn[1]


def _latency_scale(
    values: Sequence[float], limits: Sequence[tuple[str, float]], pixels: tuple[float, float]
) -> Scale:
    if not values:
        return linear((0, max((ms for _, ms in limits), default=100)), pixels, 4)
    low, high = min(values), max(values)
    logarithm = low > 0 and high / low > _LOG_FROM
    # A limit far above everything measured would squash it; the legend still names the limit.
    shown = [high, *(ms for _, ms in limits if ms < (20 if logarithm else 2.5) * high)]
    return (
        logarithmic((low, max(shown)), pixels) if logarithm else linear((0, max(shown)), pixels, 4)
    )


def _limit_lines(axes: Axes, limits: Sequence[tuple[str, float]]) -> str:
    return "".join(
        element(
            "path",
            d=points_of([(axes.left, axes.y(ms)), (axes.right, axes.y(ms))]),
            class_="limit line",
        )
        for _, ms in limits
        if axes.y.low <= ms <= axes.y.high
    )


def _time_unit(seconds: float) -> tuple[str, float]:
    if seconds > 3 * 3600:
        return "h", 3600
    return ("min", 60) if seconds > 300 else ("s", 1)


# Against time


def over_time(intervals: Sequence[Stretch], limits: Sequence[tuple[str, float]]) -> Chart:
    """Returns latency, rates, and what went wrong, below each other on one axis of time."""
    end_s = max(one.start_s + one.seconds for one in intervals)
    unit, unit_s = _time_unit(end_s)
    values = [ms for one in intervals for _, _, get in _PERCENTILES if (ms := get(one)) is not None]
    wrong = any(one.n_errors for one in intervals)
    lost = any(
        get(one) is None and one.latency.n for one in intervals for _, _, get in _PERCENTILES
    )

    def draw(width: float) -> tuple[float, str]:
        narrow = width == _NARROW_PX
        pixels = (46 if narrow else 56, width - 14)
        ticks = 4 if narrow else 8
        x = linear((0, end_s / unit_s), pixels, ticks, snug=True)
        latency = Axes(x, _latency_scale(values, limits, (254, 30)))
        rates = Axes(x, linear((0, _highest_rate(intervals)), (404, 314), 2))
        errors = Axes(
            x, linear((0, max(one.n_errors / one.seconds for one in intervals)), (544, 464), 3)
        )
        last = errors if wrong else rates
        x_title = f"time since the measurement began, {unit}"

        parts = [_busy_bands(last, latency.top, intervals, unit_s)]
        y_title = "latency, ms" + (" (logarithmic)" if latency.y.logarithmic else "")
        parts += [latency.frame(y_title, x_labels=False), _limit_lines(latency, limits)]
        for _, class_, get in reversed(_PERCENTILES):
            parts.append(_line_over_time(latency, intervals, class_, get, unit_s))
        parts += [
            rates.frame("requests a second", "" if wrong else x_title, x_labels=not wrong),
            _rates_over_time(rates, intervals, unit_s),
        ]
        if wrong:
            parts += [
                errors.frame("refused or failed a second", x_title),
                _errors_over_time(errors, intervals, unit_s),
            ]
        if not narrow:
            parts.append(_hover_strips(last, latency.top, intervals, unit_s))
        return last.bottom + 46, "".join(parts)

    title = "Latency, rate and errors against time"
    wide, narrow = _both("time", title, _describe(intervals), draw)
    legend = [Key("line", class_, name) for name, class_, _ in _PERCENTILES]
    legend += [Key("line", "limit", label) for label, _ in limits]
    legend += [Key("cross", "s3", "no answer to the request at that percentile")] if lost else []
    legend += [Key("fill", "goodput", "right answers a second")]
    if any(one.target_per_s is not None for one in intervals):
        legend += [Key("line", "target", "rate asked for")]
    if _spike_rate(intervals) <= max(one.target_per_s or 0 for one in intervals):
        legend += [Key("fill", "busy", "spike")]
    if any(one.n_refused for one in intervals):
        legend += [Key("fill", "refused", "refused (429, 503)")]
    if any(one.n_errors > one.n_refused for one in intervals):
        legend += [Key("fill", "failed", "failed otherwise")]
    note = "" if wrong else "No request was refused and none failed."
    return Chart(title, tuple(legend), wide, narrow, note)


def _describe(intervals: Sequence[Stretch]) -> str:
    parts = [f"{numbers.count(len(intervals), 'interval')}."]
    for name, _, get in _PERCENTILES:
        values = [ms for one in intervals if (ms := get(one)) is not None]
        lost = sum(get(one) is None and one.latency.n > 0 for one in intervals)
        if values:
            span = f"{numbers.milliseconds(min(values))} to {numbers.milliseconds(max(values))}"
            parts.append(f"{name} from {span}" + (f", unanswered in {lost}." if lost else "."))
        elif lost:
            parts.append(f"{name} unanswered in {lost}.")
    wrong = sum(one.n_errors for one in intervals)
    parts.append(f"{numbers.count(wrong, 'request')} refused or failed.")
    return " ".join(parts)


def _middle(one: Stretch, unit_s: float) -> float:
    return (one.start_s + one.seconds / 2) / unit_s


def _apart(before: Stretch, after: Stretch) -> bool:
    # A ramp warms up between its trials.
    return after.start_s > before.start_s + before.seconds + 0.01 * before.seconds


def _line_over_time(
    axes: Axes,
    intervals: Sequence[Stretch],
    class_: str,
    get: Callable[[Stretch], float | None],
    unit_s: float,
) -> str:
    points: list[tuple[float, float] | None] = []
    crosses: list[str] = []
    # Crosses of several percentiles stand below each other.
    cross_y = axes.top + 11 * [key for _, key, _ in reversed(_PERCENTILES)].index(class_)
    free_px = -math.inf
    for i, one in enumerate(intervals):
        if i and _apart(intervals[i - 1], one):
            points.append(None)
        ms, at = get(one), _middle(one, unit_s)
        if ms is None:
            points.append(None)
            if one.latency.n and axes.x(at) >= free_px:
                crosses.append(cross(axes.x(at), cross_y, class_))
                free_px = axes.x(at) + _CROSS_PX
        elif len(intervals) == 1:
            points += [(one.start_s / unit_s, ms), ((one.start_s + one.seconds) / unit_s, ms)]
        else:
            points.append((at, ms))
    return axes.line(points, class_) + "".join(crosses)


def _highest_rate(intervals: Sequence[Stretch]) -> float:
    return max(max(one.goodput_per_s, one.sent_per_s, one.target_per_s or 0) for one in intervals)


def _rates_over_time(axes: Axes, intervals: Sequence[Stretch], unit_s: float) -> str:
    areas, targets = [], []
    previous: float | None = None
    for i, one in enumerate(intervals):
        left, right = axes.x(one.start_s / unit_s), axes.x((one.start_s + one.seconds) / unit_s)
        top = axes.y(one.goodput_per_s)
        corners = [(left, axes.bottom), (left, top), (right, top), (right, axes.bottom)]
        areas.append(points_of(corners) + "Z")
        if one.target_per_s is not None:
            at = axes.y(one.target_per_s)
            joined = previous is not None and not _apart(intervals[i - 1], one)
            start = points_of([(left, at)])
            targets.append(f"{start.replace('M', 'L') if joined else start}H{right:.1f}")
        previous = one.target_per_s
    parts = [element("path", d="".join(areas), class_="goodput area")]
    if targets:
        parts.append(element("path", d="".join(targets), class_="target line"))
    return "".join(parts)


def _errors_over_time(axes: Axes, intervals: Sequence[Stretch], unit_s: float) -> str:
    refused: list[str] = []
    failed: list[str] = []
    for one in intervals:
        left, right = axes.x(one.start_s / unit_s), axes.x((one.start_s + one.seconds) / unit_s)
        edge = 0.5 if right - left > 4 else 0
        step = axes.y(one.n_refused / one.seconds)
        top = axes.y(one.n_errors / one.seconds)
        for paths, low, high, n in (
            (refused, axes.bottom, step, one.n_refused),
            (failed, step, top, one.n_errors - one.n_refused),
        ):
            if n > 0:
                high = min(high, low - 1)  # one request in thousands must still be seen
                left_px, right_px = left + edge, right - edge
                corners = [(left_px, low), (left_px, high), (right_px, high), (right_px, low)]
                paths.append(points_of(corners) + "Z")
    return "".join(
        element("path", d="".join(paths), class_=f"{class_} area")
        for paths, class_ in ((refused, "refused"), (failed, "failed"))
        if paths
    )


def _spike_rate(intervals: Sequence[Stretch]) -> float:
    """Returns the rate from which an interval belongs to a spike; infinite without one."""
    # A ramp's intervals are apart and have no normal rate.
    apart = any(_apart(*pair) for pair in pairwise(intervals))
    targets = sorted(one.target_per_s for one in intervals if one.target_per_s is not None)
    return math.inf if apart or not targets else 1.2 * targets[len(targets) // 2]


def _busy_bands(last: Axes, top: float, intervals: Sequence[Stretch], unit_s: float) -> str:
    spike_per_s = _spike_rate(intervals)
    bands = []
    for busy, stretches in groupby(intervals, lambda one: (one.target_per_s or 0) >= spike_per_s):
        if busy:
            spike = list(stretches)
            left = last.x(spike[0].start_s / unit_s)
            right = last.x((spike[-1].start_s + spike[-1].seconds) / unit_s)
            bands.append(box(left, top, right, last.bottom, "busy"))
    return "".join(bands)


def _hover_strips(last: Axes, top: float, intervals: Sequence[Stretch], unit_s: float) -> str:
    strips = []
    for one in intervals:
        left = last.x(one.start_s / unit_s)
        width = last.x((one.start_s + one.seconds) / unit_s) - left
        percentiles = ", ".join(
            f"{name} {numbers.milliseconds(get(one))}" for name, _, get in _PERCENTILES
        )
        lines = (
            f"{one.name}: {numbers.figures(one.start_s)} to {numbers.figures(one.start_s + one.seconds)} s",
            percentiles if one.latency.n else "no request was accepted",
            f"{one.n_sent:,} sent, {one.n_ok:,} right, {one.n_refused:,} refused, "
            f"{max(0, one.n_errors - one.n_refused):,} failed otherwise",
        )
        strips.append(box(left, top, left + width, last.bottom, None, tooltip("\n".join(lines))))
    return element("g", *strips, class_="strips")


# Against rate


def over_rate(
    trials: Sequence[Trial], capacity: Capacity | None, limits: Sequence[tuple[str, float]]
) -> Chart:
    """Returns the median and p99 of each trial of a ramp against its rate."""
    ordered = sorted(trials, key=_rate)
    shown = (_PERCENTILES[0], _PERCENTILES[2])
    values = [ms for one in ordered for _, _, get in shown if (ms := get(one)) is not None]
    rates = [_rate(one) for one in ordered] + ([capacity.rate_per_s] if capacity else [])

    def draw(width: float) -> tuple[float, str]:
        narrow = width == _NARROW_PX
        pixels = (46 if narrow else 56, width - 14)
        axes = Axes(
            linear((0, 1.04 * max(rates)), pixels, 5, snug=True),
            _latency_scale(values, limits, (290, 30)),
        )
        y_title = "latency, ms" + (" (logarithmic)" if axes.y.logarithmic else "")
        parts = [
            _capacity_band(axes, capacity) if capacity else "",
            axes.frame(y_title, "requests a second asked for"),
        ]
        parts.append(_limit_lines(axes, limits))
        for name, class_, get in shown:
            points = [
                (axes.x(_rate(one)), axes.y(ms)) for one in ordered if (ms := get(one)) is not None
            ]
            if len(points) > 1:
                parts.append(element("path", d=points_of(points), class_=f"{class_} thread"))
            parts += [_trial_mark(axes, one, name, class_, get(one)) for one in ordered]
        return axes.bottom + 46, "".join(parts)

    title = "Latency against rate"
    kept = sum(one.objective_met for one in ordered)
    description = f"{numbers.count(len(ordered), 'trial')}, {kept} of which kept the objective."
    if capacity:
        description += f" {capacity.statement}"
    wide, narrow = _both("rate", title, description, draw, _HALF_PX)
    legend = [
        Key("circle", "s1 kept", "p50"),
        Key("square", "s3 kept", "p99"),
        Key("square", "s3 missed", "hollow: objective missed"),
        *(Key("line", "limit", label) for label, _ in limits),
    ]
    if any(get(one) is None and one.latency.n for one in ordered for _, _, get in shown):
        legend.append(Key("cross", "s3", "no answer to the request at that percentile"))
    if capacity:
        legend.append(Key("line", "capacity", f"capacity, {numbers.short(capacity.rate_per_s)}/s"))
        if capacity.missed_from_per_s is not None:
            legend.append(
                Key("fill", "between", "between the highest rate kept and the lowest missed")
            )
    return Chart(title, tuple(legend), wide, narrow)


def _rate(trial: Trial) -> float:
    return trial.sent_per_s if trial.target_per_s is None else trial.target_per_s


def _capacity_band(axes: Axes, capacity: Capacity) -> str:
    at = axes.x(capacity.rate_per_s)
    parts = []
    if capacity.missed_from_per_s is not None:
        ends = sorted((capacity.kept_up_to_per_s, capacity.missed_from_per_s))
        left, right = (axes.x(min(end, axes.x.high)) for end in ends)
        parts.append(box(left, axes.top, right, axes.bottom, "between"))
    parts.append(
        element("path", d=points_of([(at, axes.bottom), (at, axes.top)]), class_="capacity line")
    )
    return "".join(parts)


def _trial_mark(axes: Axes, trial: Trial, name: str, class_: str, ms: float | None) -> str:
    x = axes.x(_rate(trial))
    end = (
        "objective kept"
        if trial.objective_met
        else "missed: " + ", ".join(map(finding, trial.misses))
    )
    title = tooltip(
        f"{trial.name}: {name} {numbers.milliseconds(ms)} at {numbers.rate(_rate(trial))}; {end}"
    )
    if ms is None:
        return element("g", title, cross(x, axes.top, class_)) if trial.latency.n else ""
    y, class_ = axes.y(ms), f"{class_} {'kept' if trial.objective_met else 'missed'}"
    if name == "p50":
        return element("circle", title, cx=x, cy=y, r=4, class_=class_)
    return box(x - 4, y - 4, x + 4, y + 4, class_, title)


# Percentiles


def percentile_curve(latencies: Latencies, limits: Sequence[tuple[str, float]]) -> Chart:
    """Returns latency against percentile, on a scale that gives each further nine the same room."""
    marks = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99)
    # Beyond this percentile there is only the slowest request.
    last = min(99.99, 100 * (1 - 1 / latencies.n))
    percents = [100 * (1 - 10 ** (-step / 30)) for step in range(121)]
    percents = [percent for percent in percents if percent < last] + [last]
    points = [(percent, latencies.percentile_ms(percent)) for percent in percents]
    answered = [(percent, ms) for percent, ms in points if ms is not None]

    def nines(percent: float) -> float:
        return -math.log10(1 - percent / 100)  # 1 at 90%, 2 at 99%

    def draw(width: float) -> tuple[float, str]:
        narrow = width == _NARROW_PX
        ticks = tuple((nines(mark), f"{mark:g}%") for mark in marks)
        x = Scale(0, 4, 46 if narrow else 56, width - 22, ticks)
        axes = Axes(x, _latency_scale([ms for _, ms in answered], limits, (290, 30)))
        y_title = "latency, ms" + (" (logarithmic)" if axes.y.logarithmic else "")
        parts = [
            axes.frame(y_title, "share of requests at most this slow"),
            _limit_lines(axes, limits),
        ]
        parts.append(axes.line([(nines(percent), ms) for percent, ms in answered], "s1"))
        if len(answered) < len(points):
            end = nines(answered[-1][0]) if answered else 0
            parts.append(cross(axes.x(end), axes.top, "s3", 5))
            d = points_of([(axes.x(end), axes.top), (axes.x(end), axes.bottom)])
            parts.append(element("path", d=d, class_="lost line"))
        return axes.bottom + 46, "".join(parts)

    title = "Percentiles"
    description = "; ".join(
        f"{mark:g}%: {numbers.milliseconds(latencies.percentile_ms(mark))}"
        for mark in marks[1:]
        if mark <= last
    )
    wide, narrow = _both("percentiles", title, description, draw, _HALF_PX)
    legend = [Key("line", "s1", "latency of that share of the requests")]
    legend += [Key("line", "limit", label) for label, _ in limits]
    if len(answered) < len(points):
        share = latencies.n_answered / latencies.n
        legend.append(
            Key("cross", "s3", f"the rest, beyond {numbers.percent(share)}, got no answer")
        )
    note = (
        ""
        if last >= 99.99
        else f"The curve ends with the slowest of {numbers.count(latencies.n, 'request')}."
    )
    return Chart(title, tuple(legend), wide, narrow, note)


# Where is the time spent?


def stage_class(index: int) -> str:
    return f"fill-{index % _STAGE_CLASSES}"


def stage_bar(stages: Sequence[Stage], rest_ms: float) -> Chart:
    """Returns the mean time of a request as one bar: the server's stages, then the rest."""
    segments = [(stage.name, stage.mean_ms, stage_class(i)) for i, stage in enumerate(stages)]
    segments.append(("rest", rest_ms, "rest"))
    total_ms = sum(ms for _, ms, _ in segments)

    def draw(width: float) -> tuple[float, str]:
        x = linear((0, total_ms), (2, width - 14), 4 if width == _NARROW_PX else 8, snug=True)
        axes = Axes(x, Scale(0, 1, 62, 22, ()))
        parts, start = [], 0.0
        for name, ms, class_ in segments:
            left, right = x(start), x(start + ms)
            title = tooltip(f"{name}: {numbers.milliseconds(ms)}, {numbers.percent(ms / total_ms)}")
            parts.append(box(left, 22, max(left + 0.5, right - 1), 62, class_, title))
            if right - left > 7.5 * len(name) + 12:
                parts.append(text(name, left + 8, 14, class_="axis"))
            start += ms
        return 110, axes.frame("", "mean, ms") + "".join(parts)

    title = "A mean request"
    description = "; ".join(f"{name}: {numbers.milliseconds(ms)}" for name, ms, _ in segments)
    wide, narrow = _both("stages", title, description, draw)
    # The table of stages below it is its legend.
    return Chart(title, (), wide, narrow)


# Memory


def memory(samples: Sequence[tuple[float, float]]) -> Chart:
    values = [size / 1e6 for _, size in samples]
    low, high = min(values), max(values)
    # A change of 1% must not look like a leak, so the axis spans at least a fifth of the value.
    low = max(0.0, min(low, high - 0.2 * high))
    unit, unit_s = _time_unit(max(at for at, _ in samples))

    def draw(width: float) -> tuple[float, str]:
        narrow = width == _NARROW_PX
        pixels = (56, width - 14)
        x = linear(
            (0, max(at for at, _ in samples) / unit_s), pixels, 4 if narrow else 8, snug=True
        )
        axes = Axes(x, linear((low, high), (180, 30), 3))
        frame = axes.frame("resident memory, MB", f"time since the measurement began, {unit}")
        line = axes.line([(at / unit_s, size / 1e6) for at, size in samples], "s1")
        return axes.bottom + 46, frame + line

    title = "Memory of the server against time"
    description = f"From {numbers.n_bytes(samples[0][1])} to {numbers.n_bytes(samples[-1][1])}."
    wide, narrow = _both("memory", title, description, draw)
    return Chart(title, (), wide, narrow, "" if low == 0 else "The axis does not start at 0.")

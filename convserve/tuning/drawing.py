"""The batch-cost curve as a table, as bars of text and as an SVG file."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from convserve.tuning.measuring import Configuration, Sample, Samples

_BAR_CHARACTERS: Final = 44
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by the colour-blind too
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 400, 60, 20, 50, 90


@dataclass(frozen=True, slots=True)
class Point:
    """The rounds of one configuration, summed up; `*_low` and `*_high` are the extremes.

    Attributes:
        image_ms: wall time of a lane for one image.
        others: as in `Sample`, medians.
    """

    configuration: Configuration
    rounds: int
    images_per_s: float
    images_per_s_low: float
    images_per_s_high: float
    batch_ms: float
    image_ms: float
    cpu_ms: float
    bare_images_per_s: float
    bare_images_per_s_low: float
    bare_images_per_s_high: float


def summed_up(samples: Samples) -> list[Point]:
    return [_point(one, rounds) for one, rounds in samples.items() if rounds]


def _point(configuration: Configuration, rounds: Sequence[Sample]) -> Point:
    rates = [one.images_per_s for one in rounds]
    bare = [one.bare_images_per_s for one in rounds]
    return Point(
        configuration=configuration,
        rounds=len(rounds),
        images_per_s=median(rates),
        images_per_s_low=min(rates),
        images_per_s_high=max(rates),
        batch_ms=median(one.batch_ms for one in rounds),
        image_ms=1e3 * configuration.lanes / median(rates),
        cpu_ms=median(one.cpu_ms for one in rounds),
        bare_images_per_s=median(bare),
        bare_images_per_s_low=min(bare),
        bare_images_per_s_high=max(bare),
    )


def described(lanes: int, threads: int) -> str:
    return (
        f"{lanes} lane{'s' if lanes > 1 else ''}, {threads} thread{'s' if threads > 1 else ''} each"
    )


def table(points: Sequence[Point], default: Configuration) -> list[str]:
    lines = [
        "                         as the service runs: prepare, run                   bare runs",
        "lanes  threads  batch   images/s  spread  ms/batch  ms/image  CPU ms/image   images/s  spread",
    ]
    for one in points:
        way = one.configuration
        spread = _percent(one.images_per_s_low, one.images_per_s, one.images_per_s_high)
        bare = _percent(
            one.bare_images_per_s_low, one.bare_images_per_s, one.bare_images_per_s_high
        )
        lines.append(
            f"{way.lanes:5}  {way.threads:7}  {way.batch_size:5}   {one.images_per_s:8.1f}  "
            f"{spread:>6}  {one.batch_ms:8.1f}  {one.image_ms:8.2f}  {one.cpu_ms:12.2f}   "
            f"{one.bare_images_per_s:8.1f}  {bare:>6}{'  default' if way == default else ''}"
        )
    return lines


def _percent(low: float, middle: float, high: float) -> str:
    return f"+-{100 * (high - low) / (2 * middle):.0f}%"


def bars(points: Sequence[Point]) -> Iterator[str]:
    """Yields one bar of `=` for each point, with a `|` where bare runs would be."""
    most = max(max(one.images_per_s, one.bare_images_per_s) for one in points)
    for pair, curve in _curves(points).items():
        yield f"{described(*pair)}:"
        for one in curve:
            length, bare = (
                round(_BAR_CHARACTERS * rate / most)
                for rate in (one.images_per_s, one.bare_images_per_s)
            )
            bar = list(("=" * length).ljust(_BAR_CHARACTERS + 1))
            bar[bare] = "|"
            yield f"{one.configuration.batch_size:5} {''.join(bar)} {one.images_per_s:7.1f}"


def _curves(points: Sequence[Point]) -> dict[tuple[int, int], list[Point]]:
    curves: dict[tuple[int, int], list[Point]] = {}
    for one in points:
        pair = one.configuration.lanes, one.configuration.threads
        curves.setdefault(pair, []).append(one)
    return curves


def svg(points: Sequence[Point], title: str) -> str:
    """Returns a drawing of images/s against batch size, one curve for each lanes and threads.

    Whiskers span the rounds; dashed lines are bare runs.
    """
    scale = _Scale(
        largest_batch=max(one.configuration.batch_size for one in points),
        top=_round_up(max(max(one.images_per_s_high, one.bare_images_per_s) for one in points)),
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12" role="img">',
        f"<title>{html.escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="24" font-size="14">{html.escape(title)}</text>',
        f'<text x="{_LEFT}" y="42" fill="#555">images/s by batch size</text>',
        *_axes(scale, sorted({one.configuration.batch_size for one in points})),
    ]
    for index, curve in enumerate(_curves(points).values()):
        parts += _curve(scale, curve, index)
    parts += [
        f'<text x="{_LEFT}" y="{_HEIGHT - 8}" fill="#555">whiskers: all rounds; '
        "dashed: bare runs, without preparing pictures</text>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True, slots=True)
class _Scale:
    """From a batch size, in powers of two, and a rate to pixels of the drawing."""

    largest_batch: int
    top: float

    def x(self, batch_size: int) -> float:
        share = math.log2(batch_size) / math.log2(self.largest_batch) if batch_size > 1 else 0
        return _LEFT + 20 + (_WIDTH - _LEFT - _RIGHT - 40) * share

    def y(self, images_per_s: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * images_per_s / self.top


def _axes(scale: _Scale, batch_sizes: Sequence[int]) -> Iterator[str]:
    for quarter in range(5):
        rate = scale.top * quarter / 4
        down = scale.y(rate)
        yield f'<path d="M{_LEFT} {down:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 8}" y="{down + 4:.1f}" text-anchor="end">{rate:g}</text>'
    for size in batch_sizes:
        at = f'x="{scale.x(size):.1f}" y="{_HEIGHT - _BOTTOM + 18}"'
        yield f'<text {at} text-anchor="middle">{size}</text>'


def _curve(scale: _Scale, curve: Sequence[Point], index: int) -> Iterator[str]:
    """Yields one curve, its bare twin, its whiskers and its line of the legend."""
    colour = _COLOURS[index % len(_COLOURS)]
    # A little apart, so that whiskers do not hide each other.
    x = [scale.x(one.configuration.batch_size) + 4 * (index - 1) for one in curve]

    for rates, style in (
        ([one.bare_images_per_s for one in curve], 'stroke-opacity="0.5" stroke-dasharray="4 4"'),
        ([one.images_per_s for one in curve], 'stroke-width="2"'),
    ):
        at = " ".join(
            f"{left:.1f},{scale.y(rate):.1f}" for left, rate in zip(x, rates, strict=True)
        )
        yield f'<polyline points="{at}" fill="none" stroke="{colour}" {style}/>'
    for left, one in zip(x, curve, strict=True):
        low, high = scale.y(one.images_per_s_low), scale.y(one.images_per_s_high)
        yield f'<path d="M{left:.1f} {low:.1f}V{high:.1f}" stroke="{colour}"/>'
        yield f'<circle cx="{left:.1f}" cy="{scale.y(one.images_per_s):.1f}" r="3" fill="{colour}"/>'

    left, down = _LEFT + 190 * (index % 3), _HEIGHT - 40 + 18 * (index // 3)
    configuration = curve[0].configuration
    said = described(configuration.lanes, configuration.threads)
    yield f'<rect x="{left}" y="{down - 9}" width="10" height="10" fill="{colour}"/>'
    yield f'<text x="{left + 16}" y="{down}">{said}</text>'


def _round_up(value: float) -> float:
    """Returns the next 1, 2, 4 or 8 times a power of ten."""
    power: float = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value)

"""Findings about the pictures themselves: sizes, shapes, formats and colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Final

from training.data.checks.cleaning import ExaminedPictures
from training.data.checks.findings import Finding
from training.data.checks.inspection import PictureFacts

SMALL_PX: Final = 32
LONG_ASPECT: Final = 4.0

_ODD_MODES: Final[dict[str, tuple[str, Callable[[str], bool]]]] = {
    "CMYK": ("colours shift in the conversion to RGB", lambda mode: mode.startswith("CMYK")),
    "16-bit": ("scaled to 8 bits", lambda mode: "16" in mode or mode in ("I", "F")),
    "palette": ("read as the colours of the palette", lambda mode: mode.startswith("P")),
    "transparent": (
        "laid on white",
        lambda mode: mode.split()[0] in ("RGBA", "LA", "PA", "La", "RGBa") or "transp" in mode,
    ),
}
"""Colour modes that are read differently from what a viewer may show, and how."""

Named = tuple[str, PictureFacts]


def judge_pictures(examined: ExaminedPictures, input_size_px: int | None) -> Iterator[Finding]:
    """Yields findings about the readable pictures."""
    readable = [
        (sample.name, one)
        for sample, one in zip(examined.found.samples, examined.facts, strict=True)
        if one.readable
    ]
    if not readable:
        return
    yield from _judge_sizes(readable, input_size_px)
    yield from _judge_modes(readable)
    yield _sizes(readable)
    yield Finding("note", "formats", f"formats: {_mix(one.format for _, one in readable)}")
    yield Finding("note", "modes", f"colour modes: {_mix(one.mode for _, one in readable)}")


def _judge_sizes(readable: Sequence[Named], input_size_px: int | None) -> Iterator[Finding]:
    small = [named for named in readable if min(named[1].size_px) < SMALL_PX]
    if small and median(min(one.size_px) for _, one in readable) >= SMALL_PX:
        yield Finding(
            "warning",
            "small",
            f"{len(small)} with a side shorter than {SMALL_PX} px, while most are larger",
            "thumbnails or icons? delete them if they show nothing",
            _with_size(small),
        )
    long = [
        named for named in readable if max(named[1].size_px) > LONG_ASPECT * min(named[1].size_px)
    ]
    if long:
        yield Finding(
            "warning",
            "long",
            f"{len(long)} more than {LONG_ASPECT:g} times as long as wide",
            "the ends are cut off or squeezed; crop them to what matters",
            _with_size(long),
        )
    if input_size_px is not None:
        below = [named for named in readable if min(named[1].size_px) < input_size_px]
        if below:
            yield Finding(
                "note",
                "below_input",
                f"{len(below)} with a side shorter than the network's input of {input_size_px} px, "
                "so they are enlarged",
            )


def _judge_modes(readable: Sequence[Named]) -> Iterator[Finding]:
    for kind, (effect, matches) in _ODD_MODES.items():
        odd = [(name, one.mode) for name, one in readable if matches(one.mode)]
        if odd:
            yield Finding(
                # Where every picture is so, the network sees no difference between them.
                "warning" if len(odd) < len(readable) else "note",
                "odd_mode",
                f"{len(odd)} {kind} among {len(readable)}",
                effect,
                tuple(odd),
            )


def _sizes(readable: Sequence[Named]) -> Finding:
    sizes = sorted((one.size_px for _, one in readable), key=lambda size: size[0] * size[1])
    picked = (sizes[0], sizes[len(sizes) // 2], sizes[-1])
    smallest, middle, largest = (f"{width} x {height}" for width, height in picked)
    return Finding(
        "note",
        "sizes",
        f"sizes in px: {smallest} the smallest, {middle} the median, {largest} the largest",
    )


def _with_size(named: Sequence[Named]) -> tuple[tuple[str, ...], ...]:
    return tuple((name, f"{one.size_px[0]} x {one.size_px[1]}") for name, one in named)


def _mix(values: Iterator[str]) -> str:
    return ", ".join(f"{count} {value}" for value, count in Counter(values).most_common())

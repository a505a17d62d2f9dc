"""Rules about the pictures themselves: their sizes, shapes, formats and colours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Final

from training.data.checks.facts import PictureFacts
from training.data.checks.findings import Finding, counted
from training.data.checks.selection import Selection

SMALL_PX: Final = 32
LONG_ASPECT: Final = 4.0

# Colour modes that a viewer may show in another way than the service reads them: kind, how the
# service reads them, test of the mode.
_ODD_MODES: Final[dict[str, tuple[str, Callable[[str], bool]]]] = {
    "CMYK": ("colours may shift in the conversion to RGB", lambda mode: mode.startswith("CMYK")),
    "16-bit": ("scaled to 8 bits", lambda mode: "16" in mode or mode in ("I", "F")),
    "palette": ("converted to RGB with their palette", lambda mode: mode.startswith("P")),
    "transparent": (
        "placed on a white background",
        lambda mode: mode.split()[0] in ("RGBA", "LA", "PA", "La", "RGBa") or "transp" in mode,
    ),
}

Named = tuple[str, PictureFacts]


def check_pictures(selection: Selection, input_size_px: int | None) -> Iterator[Finding]:
    readable = [
        (sample.name, one)
        for sample, one in zip(selection.source.samples, selection.facts, strict=True)
        if one.readable
    ]
    if not readable:
        return

    yield from _check_sizes(readable, input_size_px)
    yield from _check_modes(readable)
    yield _sizes(readable)
    yield Finding("note", "formats", f"formats: {_frequencies(one.format for _, one in readable)}")
    yield Finding("note", "modes", f"colour modes: {_frequencies(one.mode for _, one in readable)}")


def _check_sizes(readable: Sequence[Named], input_size_px: int | None) -> Iterator[Finding]:
    # A set of tiny pictures, such as digits, is meant to be so; a tiny one among large ones is odd.
    small = [named for named in readable if min(named[1].size_px) < SMALL_PX]
    if small and median(min(one.size_px) for _, one in readable) >= SMALL_PX:
        yield Finding(
            "warning",
            "small",
            f"{counted(len(small), 'picture')} with a side shorter than {SMALL_PX} px, "
            "while most are larger",
            "delete them if they are only thumbnails or icons",
            _with_sizes(small),
        )

    long = [
        named for named in readable if max(named[1].size_px) > LONG_ASPECT * min(named[1].size_px)
    ]
    if long:
        yield Finding(
            "warning",
            "long",
            f"{counted(len(long), 'picture')} with one side more than {LONG_ASPECT:g} times as "
            "long as the other",
            "the ends are cut off or squeezed; crop these pictures to what matters",
            _with_sizes(long),
        )

    if input_size_px is not None:
        below = [named for named in readable if min(named[1].size_px) < input_size_px]
        if below:
            yield Finding(
                "note",
                "below_input",
                f"{counted(len(below), 'picture')} with a side shorter than the network's input "
                f"of {input_size_px} px; enlarged",
            )


def _check_modes(readable: Sequence[Named]) -> Iterator[Finding]:
    for kind, (effect, matches) in _ODD_MODES.items():
        odd = [(name, one.mode) for name, one in readable if matches(one.mode)]
        if odd:
            yield Finding(
                # If every picture has this mode, the network cannot tell classes apart by it.
                "warning" if len(odd) < len(readable) else "note",
                "odd_mode",
                f"{counted(len(odd), f'{kind} picture')} among {len(readable)}",
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
        f"sizes in px: smallest {smallest}, median {middle}, largest {largest}",
    )


def _with_sizes(named: Sequence[Named]) -> tuple[tuple[str, ...], ...]:
    return tuple((name, f"{one.size_px[0]} x {one.size_px[1]}") for name, one in named)


def _frequencies(values: Iterator[str]) -> str:
    return ", ".join(f"{count} {value}" for value, count in Counter(values).most_common())

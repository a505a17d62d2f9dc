"""How fast two versions answer on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import quantiles
from typing import Final

from contract.preprocessing import read_input
from service.models.engine import Run
from service.models.repository import LoadedVersion

MIN_ROUNDS: Final = 5
MAX_ROUNDS: Final = 1000


@dataclass(frozen=True, slots=True)
class Spread:
    """The median and the middle half of the measurements."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Times per picture, from the file's bytes to the probabilities: decoded, prepared and run.

    Attributes:
        milliseconds: per picture.
        cpu_seconds: of the whole process, per picture.
    """

    milliseconds: Spread
    cpu_seconds: Spread


@dataclass(frozen=True, slots=True)
class SpeedDifference:
    """The times of two versions that took turns on this machine, one picture and one thread at a time.

    Attributes:
        n: measurements of each version.
        n_pictures: different pictures.
        ratio: time of B divided by that of A, for the same picture one after the other.
    """

    n: int
    n_pictures: int
    a: Speed
    b: Speed
    ratio: Spread


def compare_speed(
    pictures: Sequence[bytes],
    a: LoadedVersion,
    b: LoadedVersion,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> SpeedDifference:
    """Measures two versions in turns, A B A B, for about `seconds`.

    Args:
        pictures: image files that both versions can decode, one or more.
        a: the first version.
        b: the second.
        seconds: at least `MIN_ROUNDS` rounds are measured, whatever they take.
        clock: gives seconds.
        cpu_clock: gives seconds of the process.
    """

    def measure(version: LoadedVersion, data: bytes) -> tuple[float, float]:
        started = clock(), cpu_clock()
        version.engine.run(read_input(data, version.manifest)[None], Run())
        return clock() - started[0], cpu_clock() - started[1]

    for version in (a, b):  # the first run allocates
        measure(version, pictures[0])

    times: list[tuple[tuple[float, float], tuple[float, float]]] = []
    ends = clock() + seconds
    for number in count():
        if number >= MAX_ROUNDS or (number >= MIN_ROUNDS and clock() >= ends):
            break
        data = pictures[number % len(pictures)]
        times.append((measure(a, data), measure(b, data)))

    speeds = [
        Speed(
            milliseconds=_spread([1e3 * round_[side][0] for round_ in times]),
            cpu_seconds=_spread([round_[side][1] for round_ in times]),
        )
        for side in (0, 1)
    ]
    return SpeedDifference(
        n=len(times),
        n_pictures=min(len(pictures), len(times)),
        a=speeds[0],
        b=speeds[1],
        ratio=_spread([after[0] / before[0] for before, after in times]),
    )


def _spread(values: Sequence[float]) -> Spread:
    low, middle, high = (float(f"{value:.4g}") for value in quantiles(values, n=4))
    return Spread(middle, low, high)

"""Divides pictures into training, validation and test pictures, the same way every time.

A picture's place follows from a hash of the seed and its name, ranked within its class. So the
order in which files are found does not matter, and pictures that are added later move few others.
Duplicates go together, or the test would ask what was learned by heart.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from training.data.samples import Sample

_ENOUGH: Final = 8
"""Pictures of a class from which on each split that is cut off gets two at least."""


@dataclass(frozen=True, slots=True)
class Fractions:
    """How much is cut off the training pictures; 0 where such a split exists already."""

    validation: float
    test: float


@dataclass(frozen=True, slots=True)
class _Unit:
    """Pictures that stay together."""

    rank: bytes
    positions: tuple[int, ...]


def assign(
    samples: Sequence[Sample], groups: Sequence[int], fractions: Fractions, seed: int
) -> list[str]:
    """Gives each picture its split.

    Each class is divided on its own. A class of three pictures or more has one in each split, one
    of `_ENOUGH` or more two; a class of two has its second in the test split. A group of duplicates
    counts for the class most of it is labelled with, and is trained on where it is too large.

    Args:
        samples: with unique names.
        groups: equal numbers stay together.
        fractions: how much to cut off.
        seed: another one divides differently.

    Returns:
        "train", "validation" or "test" for each sample.
    """
    splits = ["train"] * len(samples)
    for units in _units_by_class(samples, groups, seed).values():
        n_pictures = sum(len(unit.positions) for unit in units)
        waiting = sorted(units, key=lambda unit: unit.rank)
        for split, fraction in (("test", fractions.test), ("validation", fractions.validation)):
            taken, waiting = _take(waiting, _quota(n_pictures, fraction))
            for unit in taken:
                for position in unit.positions:
                    splits[position] = split
    return splits


def _units_by_class(
    samples: Sequence[Sample], groups: Sequence[int], seed: int
) -> dict[int, list[_Unit]]:
    members: dict[int, list[int]] = defaultdict(list)
    for position, group in enumerate(groups):
        members[group].append(position)
    units: dict[int, list[_Unit]] = defaultdict(list)
    for positions in members.values():
        rank = min(_rank(samples[position].name, seed) for position in positions)
        labels = Counter(samples[position].index for position in positions)
        most_frequent = min(labels, key=lambda index: (-labels[index], index))
        units[most_frequent].append(_Unit(rank, tuple(positions)))
    return units


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()


def _quota(n_pictures: int, fraction: float) -> int:
    if fraction == 0:
        return 0
    return max(2 if n_pictures >= _ENOUGH else 1, round(n_pictures * fraction))


def _take(waiting: Sequence[_Unit], quota: int) -> tuple[list[_Unit], list[_Unit]]:
    """Returns the units that fill the quota, in their order, and the rest, which is never empty."""
    taken: list[_Unit] = []
    rest: list[_Unit] = []
    room = quota
    for unit in waiting:
        if len(taken) + 1 < len(waiting) and len(unit.positions) <= room:
            taken.append(unit)
            room -= len(unit.positions)
        else:
            rest.append(unit)
    return taken, rest

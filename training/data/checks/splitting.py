"""Divides pictures into training, validation and test pictures, the same way every time.

A picture's place follows from a hash of the seed and its name, ranked within its class. So the
order in which files are found does not matter, and pictures that are added later move few others.
Duplicates go together, or the test would ask what was learned by heart.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from training.data.samples import Sample

_ENOUGH: Final = 8
"""Pictures of a class from which on each split that is cut off gets two at least."""


_Unit = tuple[bytes, list[int]]
"""Pictures that stay together: the rank of the first one, and their positions."""


def assign(
    samples: Sequence[Sample], groups: Sequence[int], fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Gives each picture its split.

    Each class is divided on its own. A class of three pictures or more has one in each split, one
    of `_ENOUGH` or more two; a class of two has its second in the test split. A group of duplicates
    counts for the class most of it is labelled with, and is trained on where it is too large.

    Args:
        samples: with unique names.
        groups: equal numbers stay together.
        fractions: how much of each class is cut off for a split, the first split first.
        seed: another one divides differently.

    Returns:
        "train" or a split of `fractions` for each sample.
    """
    splits = ["train"] * len(samples)
    for units in _units_by_class(samples, groups, seed).values():
        n_pictures = sum(len(positions) for _, positions in units)
        waiting = sorted(units)
        for split, fraction in fractions.items():
            quota = max(2 if n_pictures >= _ENOUGH else 1, round(n_pictures * fraction))
            taken, waiting = _take(waiting, quota)
            for position in (position for _, positions in taken for position in positions):
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
        units[most_frequent].append((rank, positions))
    return units


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()


def _take(waiting: Sequence[_Unit], quota: int) -> tuple[list[_Unit], list[_Unit]]:
    """Returns the units that fill the quota, in their order, and the rest, which is never empty."""
    taken: list[_Unit] = []
    rest: list[_Unit] = []
    for unit in waiting:
        n_pictures = len(unit[1])
        if len(taken) + 1 < len(waiting) and n_pictures <= quota:
            taken.append(unit)
            quota -= n_pictures
        else:
            rest.append(unit)
    return taken, rest

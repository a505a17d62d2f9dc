"""Divides pictures into training, validation and test pictures, always in the same way.

Pictures are ranked within their class by a hash of the seed and their name. So the order of the files
does not matter, and pictures that are added later move few others.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from training.data.samples import Sample

_LARGE_CLASS: Final = 8  # with this many pictures, each split that is cut gets at least two

_Unit = tuple[bytes, list[int]]  # pictures that stay together: their lowest rank, their positions


def assign(
    samples: Sequence[Sample], groups: Sequence[int], fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Assigns each sample to "train" or to a split of `fractions`, class by class.

    A class of three or more pictures has at least one in each split, a class of eight or more at
    least two. A class of two has one in "train" and one in the first split of `fractions`.

    Args:
        samples: with unique names.
        groups: samples with equal numbers stay together. They count for their most frequent class,
            and go to "train" if they are too many for a split.
        fractions: share of each class to cut off for a split, in this order.
        seed: other seeds divide differently.
    """
    splits = ["train"] * len(samples)
    for units in _units_by_class(samples, groups, seed).values():
        n_pictures = sum(len(positions) for _, positions in units)
        remaining = sorted(units)
        for split, fraction in fractions.items():
            quota = max(2 if n_pictures >= _LARGE_CLASS else 1, round(n_pictures * fraction))
            taken, remaining = _take(remaining, quota)
            for position in (position for _, positions in taken for position in positions):
                splits[position] = split
    return splits


def _units_by_class(
    samples: Sequence[Sample], groups: Sequence[int], seed: int
) -> dict[int, list[_Unit]]:
    together: dict[int, list[int]] = defaultdict(list)
    for position, group in enumerate(groups):
        together[group].append(position)

    units: dict[int, list[_Unit]] = defaultdict(list)
    for positions in together.values():
        rank = min(_rank(samples[position].name, seed) for position in positions)
        labels = Counter(samples[position].index for position in positions)
        most_frequent = min(labels, key=lambda index: (-labels[index], index))  # ties: the lowest
        units[most_frequent].append((rank, positions))
    return units


def _rank(name: str, seed: int) -> bytes:
    # File names may hold bytes that are not valid UTF-8.
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()


def _take(units: Sequence[_Unit], quota: int) -> tuple[list[_Unit], list[_Unit]]:
    # A unit that is too large is skipped, and one unit always remains to train on.
    taken: list[_Unit] = []
    rest: list[_Unit] = []
    for unit in units:
        n_pictures = len(unit[1])
        if len(taken) + 1 < len(units) and n_pictures <= quota:
            taken.append(unit)
            quota -= n_pictures
        else:
            rest.append(unit)

    return taken, rest

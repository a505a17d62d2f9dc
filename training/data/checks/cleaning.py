"""Decides which pictures are trained, tuned and tested on, given what is known of all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from training.config.config import Data
from training.data.checks.duplicates import Duplicates
from training.data.checks.inspection import PictureFacts
from training.data.checks.splitting import assign
from training.data.samples import SPLITS, Sample
from training.data.sources.catalogue import SourceContents

UNREADABLE: Final = "unreadable"
LEAK: Final = "duplicate across splits"
TWO_LABELS: Final = "same picture under two labels"


@dataclass(frozen=True, slots=True)
class ExaminedPictures:
    """All that is known of N pictures.

    Attributes:
        found: the source.
        facts: of each picture.
        duplicates: unreadable pictures are copies of none.
        splits: where each picture is used; None where it is left out.
        left_out: why each of these is left out.
    """

    found: SourceContents
    facts: Sequence[PictureFacts]
    duplicates: Duplicates
    splits: tuple[str | None, ...]
    left_out: dict[int, str]

    def used(self, split: str) -> tuple[Sample, ...]:
        """Returns the pictures of a split, in order of their names."""
        pairs = zip(self.found.samples, self.splits, strict=True)
        return tuple(sample for sample, used in pairs if used == split)


def examine(
    found: SourceContents, facts: Sequence[PictureFacts], duplicates: Duplicates, config: Data
) -> ExaminedPictures:
    """Leaves out what cannot be used and cuts the splits that the source lacks."""
    splits: list[str | None] = list(found.source_splits)
    left_out = {i: UNREADABLE for i, one in enumerate(facts) if not one.readable}
    if config.leaks == "drop":
        for position in _leaked(splits, duplicates, left_out):
            left_out[position] = LEAK
        for position in _contradicting(found.samples, splits, duplicates, left_out):
            left_out[position] = TWO_LABELS
    for position in left_out:
        splits[position] = None
    _cut(found, splits, duplicates, config)
    return ExaminedPictures(found, facts, duplicates, tuple(splits), left_out)


def groups(numbers: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """Yields the positions of equal numbers, for each that occurs more than once."""
    members: dict[int, list[int]] = defaultdict(list)
    for position, number in enumerate(numbers):
        members[number].append(position)
    return (tuple(group) for group in members.values() if len(group) > 1)


def _leaked(
    splits: Sequence[str | None], duplicates: Duplicates, left_out: dict[int, str]
) -> Iterator[int]:
    """Yields what repeats a picture of a later split; so the test pictures stay whole."""
    for group in groups(duplicates.near.tolist()):
        readable = [position for position in group if position not in left_out]
        present = {splits[position] for position in readable}
        last = [split for split in SPLITS if split in present][-1:]
        yield from (position for position in readable if [splits[position]] != last)


def _contradicting(
    samples: Sequence[Sample],
    splits: Sequence[str | None],
    duplicates: Duplicates,
    left_out: dict[int, str],
) -> Iterator[int]:
    """Yields training pictures whose pixels occur under two labels."""
    for group in groups(duplicates.exact.tolist()):
        trained = [i for i in group if splits[i] == "train" and i not in left_out]
        if len({samples[i].index for i in trained}) > 1:
            yield from trained


def _cut(
    found: SourceContents, splits: list[str | None], duplicates: Duplicates, config: Data
) -> None:
    """Cuts the splits that the source lacks off its training pictures."""
    fractions = {"test": config.test_fraction, "validation": config.validation_fraction}
    missing = {split: f for split, f in fractions.items() if split not in found.given_splits}
    trained = [position for position, split in enumerate(splits) if split == "train"]
    assigned = assign(
        [found.samples[position] for position in trained],
        [int(duplicates.near[position]) for position in trained],
        missing,
        config.split_seed,
    )
    for position, split in zip(trained, assigned, strict=True):
        splits[position] = split

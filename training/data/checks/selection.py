"""Selects the pictures to use and assigns each to a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from training.config.config import Data
from training.data.checks.duplicates import Duplicates
from training.data.checks.facts import PictureFacts
from training.data.checks.splitting import assign
from training.data.samples import SPLITS, Sample
from training.data.sources.catalogue import SourceContents

# Reasons for leaving a picture out. Findings show them after a count: "3 unreadable".
UNREADABLE: Final = "unreadable"
LEAK: Final = "repeated in a later split"
TWO_LABELS: Final = "found under two labels"


@dataclass(frozen=True, slots=True)
class Selection:
    """The pictures of a source, in its order, with everything the checks know of them."""

    source: SourceContents
    facts: Sequence[PictureFacts]
    duplicates: Duplicates  # unreadable pictures are duplicates of none
    splits: tuple[str | None, ...]  # None: left out
    left_out: dict[int, str]  # position to reason

    def samples_of(self, split: str) -> tuple[Sample, ...]:
        pairs = zip(self.source.samples, self.splits, strict=True)
        return tuple(sample for sample, own in pairs if own == split)


def select(
    source: SourceContents, facts: Sequence[PictureFacts], duplicates: Duplicates, config: Data
) -> Selection:
    """Leaves out what cannot be used, then cuts the splits that the source lacks."""
    splits: list[str | None] = list(source.source_splits)
    left_out = {i: UNREADABLE for i, one in enumerate(facts) if not one.readable}

    # Leaks first: a label conflict counts only between pictures that are still in use.
    if config.leaks == "drop":
        for position in _leaks(splits, duplicates, left_out):
            left_out[position] = LEAK
        for position in _label_conflicts(source.samples, splits, duplicates, left_out):
            left_out[position] = TWO_LABELS
    for position in left_out:
        splits[position] = None

    _cut_missing_splits(source, splits, duplicates, config)
    return Selection(source, facts, duplicates, tuple(splits), left_out)


def groups(numbers: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """Yields the positions of equal numbers, for each number that occurs more than once."""
    positions: dict[int, list[int]] = defaultdict(list)
    for position, number in enumerate(numbers):
        positions[number].append(position)
    return (tuple(group) for group in positions.values() if len(group) > 1)


def _leaks(
    splits: Sequence[str | None], duplicates: Duplicates, left_out: dict[int, str]
) -> Iterator[int]:
    for group in groups(duplicates.near.tolist()):
        readable = [position for position in group if position not in left_out]
        present = {splits[position] for position in readable}
        # The copies in the last split stay, so the test split is never made smaller.
        last = [split for split in SPLITS if split in present][-1:]
        yield from (position for position in readable if [splits[position]] != last)


def _label_conflicts(
    samples: Sequence[Sample],
    splits: Sequence[str | None],
    duplicates: Duplicates,
    left_out: dict[int, str],
) -> Iterator[int]:
    # Exact duplicates only: two near ones may be two things that differ in a detail.
    for group in groups(duplicates.exact.tolist()):
        trained = [i for i in group if splits[i] == "train" and i not in left_out]
        if len({samples[i].index for i in trained}) > 1:
            yield from trained


def _cut_missing_splits(
    source: SourceContents, splits: list[str | None], duplicates: Duplicates, config: Data
) -> None:
    fractions = {"test": config.test_fraction, "validation": config.validation_fraction}
    missing = {split: f for split, f in fractions.items() if split not in source.given_splits}
    trained = [position for position, split in enumerate(splits) if split == "train"]
    assigned = assign(
        [source.samples[position] for position in trained],
        [int(duplicates.near[position]) for position in trained],
        missing,
        config.split_seed,
    )
    for position, split in zip(trained, assigned, strict=True):
        splits[position] = split

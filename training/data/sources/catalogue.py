"""Collects the pictures and classes of a source, without decoding a file."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from contract.manifest import Label
from training.data.samples import Sample
from training.errors import DataRefused

MAX_LABEL: Final = 200


@dataclass(frozen=True, slots=True)
class SourceContents:
    """The classes and pictures of a source; the pictures may be unreadable."""

    name: str  # of the folder, list or set
    labels: tuple[Label, ...]  # C, in natural order of their names; some may have no picture
    samples: tuple[Sample, ...]  # in natural order of their names
    splits: tuple[str | None, ...]  # of each sample; None if the source gives none
    empty: tuple[str, ...] = ()  # class folders without a picture, such as "train/hat"
    skipped: dict[str, tuple[str, ...]] = field(default_factory=dict)  # names by reason
    merged: tuple[str, ...] = ()  # names that became one label, because only spaces differ
    license: str | None = None  # SPDX identifier, if it is known

    @property
    def given_splits(self) -> frozenset[str]:
        return frozenset(split for split in self.splits if split is not None)

    @property
    def source_splits(self) -> tuple[str, ...]:
        """The split of each sample, "train" where the source gives none."""
        return tuple(split or "train" for split in self.splits)


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One picture before the classes are numbered."""

    name: str  # unique in the source
    label: str  # as the source writes it
    split: str | None  # one of `SPLITS`
    content: Path | bytes


class Catalogue:
    """Builds `SourceContents`. Raises DataRefused for names that cannot be labels."""

    def __init__(self) -> None:
        self.entries: list[CatalogueEntry] = []
        self.empty: list[str] = []
        self._labels: dict[str, set[str]] = {}
        self._skipped: dict[str, list[str]] = defaultdict(list)

    def add_label(self, written: str) -> None:
        """Adds a class, perhaps one without pictures."""
        self._labels.setdefault(_cleaned(written), set()).add(written)

    def add(self, entry: CatalogueEntry) -> None:
        self.add_label(entry.label)
        self.entries.append(entry)

    def skip(self, reason: str, name: str) -> None:
        self._skipped[reason].append(name)

    def contents(self, name: str, license_id: str | None = None) -> SourceContents:
        """Sorts the pictures and numbers the classes."""
        names = sorted(self._labels, key=natural_key)
        index_of = {label: index for index, label in enumerate(names)}
        entries = sorted(self.entries, key=lambda entry: natural_key(entry.name))

        return SourceContents(
            name=name,
            labels=tuple(Label(index=index, name=label) for index, label in enumerate(names)),
            samples=tuple(_sample(entry, index_of[_cleaned(entry.label)]) for entry in entries),
            splits=tuple(entry.split for entry in entries),
            empty=tuple(self.empty),
            skipped={reason: tuple(names) for reason, names in sorted(self._skipped.items())},
            merged=tuple(
                written
                for spellings in self._labels.values()
                if len(spellings) > 1
                for written in sorted(spellings)
            ),
            license=license_id,
        )


def natural_key(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sorts names as people do: "2" before "10", upper and lower case alike."""
    parts = re.split(r"([0-9]+)", name.casefold())
    numbers = [part.isascii() and part.isdecimal() for part in parts]
    key = [
        (False, int(part), "") if is_number else (True, 0, part)
        for part, is_number in zip(parts, numbers, strict=True)
        if part
    ]
    return key, name  # the name itself decides between "a" and "A"


def _cleaned(written: str) -> str:
    # Some file systems store accents as separate characters.
    name = unicodedata.normalize("NFC", written.strip())
    try:
        Label(index=0, name=name)
    except ValidationError as error:
        raise DataRefused(
            f"{written[:40]!r} cannot be a label: labels are text of 1 to {MAX_LABEL} characters"
        ) from error
    return name


def _sample(entry: CatalogueEntry, index: int) -> Sample:
    if isinstance(entry.content, bytes):
        return Sample(entry.name, index, data=entry.content)
    return Sample(entry.name, index, path=entry.content)

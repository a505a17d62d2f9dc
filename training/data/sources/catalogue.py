"""Collects the pictures of a data set before anything is known about what is in them."""

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
    """What a source holds.

    Attributes:
        name: of the folder, list or set.
        labels: C classes in natural order of their names, those without a picture too.
        samples: all pictures, readable or not, in order of their names.
        splits: the split of each sample as the source gives it; None where it gives none.
        empty: class folders without a picture, such as "train/hat".
        skipped: what was left out, by reason.
        merged: names that differ in spaces around them only and became one label.
        license: SPDX identifier where it is known.
    """

    name: str
    labels: tuple[Label, ...]
    samples: tuple[Sample, ...]
    splits: tuple[str | None, ...]
    empty: tuple[str, ...] = ()
    skipped: dict[str, tuple[str, ...]] = field(default_factory=dict)
    merged: tuple[str, ...] = ()
    license: str | None = None

    @property
    def given_splits(self) -> frozenset[str]:
        """The splits the source has by itself."""
        return frozenset(split for split in self.splits if split is not None)

    @property
    def source_splits(self) -> tuple[str, ...]:
        """The split of each sample, "train" where the source gives none."""
        return tuple(split or "train" for split in self.splits)


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """One picture before the classes are numbered.

    Attributes:
        name: unique in the source.
        label: as it is written there.
        split: one of `training.data.samples.SPLITS`, or None.
        content: the file, or what is in it.
    """

    name: str
    label: str
    split: str | None
    content: Path | bytes


class Catalogue:
    """Collects what a source holds and turns it into `SourceContents`."""

    def __init__(self) -> None:
        self.entries: list[CatalogueEntry] = []
        self.empty: list[str] = []
        self._labels: dict[str, set[str]] = {}
        self._skipped: dict[str, list[str]] = defaultdict(list)

    def add_label(self, written: str) -> None:
        """Adds a class, which may turn out to have no picture.

        Raises:
            DataRefused: the name cannot be a label.
        """
        self._labels.setdefault(_cleaned(written), set()).add(written)

    def add(self, entry: CatalogueEntry) -> None:
        """Adds a picture and its class.

        Raises:
            DataRefused: the name of the class cannot be a label.
        """
        self.add_label(entry.label)
        self.entries.append(entry)

    def skip(self, reason: str, name: str) -> None:
        """Notes that something was left out."""
        self._skipped[reason].append(name)

    def found(self, name: str, license_id: str | None = None) -> SourceContents:
        """Numbers the classes and orders the pictures."""
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
    """Orders names as people do: "2" before "10", whatever their case."""
    parts = re.split(r"([0-9]+)", name.casefold())
    numbers = [part.isascii() and part.isdecimal() for part in parts]
    key = [
        (False, int(part), "") if is_number else (True, 0, part)
        for part, is_number in zip(parts, numbers, strict=True)
        if part
    ]
    return key, name


def _cleaned(written: str) -> str:
    """Returns the label that is meant: no spaces around it, accents in one form."""
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

"""A data set after it was found, checked and split, and ways to read its samples."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from contract.errors import ImageError
from contract.manifest import Label
from training.data.pictures import Picture

log = logging.getLogger(__name__)

T = TypeVar("T")

SPLITS: Final = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Sample:
    """An image file with its class, on disk or in memory."""

    name: str  # unique in its data set, such as "train/cat/1.jpg"; shown in reports
    index: int  # of the class
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)  # the whole file, if there is no path

    def read(self) -> bytes:
        """Returns the whole file, or raises OSError."""
        if self.data is not None:
            return self.data
        if self.path is None:
            raise FileNotFoundError(self.name)
        return self.path.read_bytes()


@dataclass(frozen=True, slots=True)
class DataSet:
    """Readable pictures in three disjoint splits."""

    name: str
    labels: tuple[Label, ...]  # C, by index
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]  # choose the epoch and fit the calibration
    test: tuple[Sample, ...]  # all reported numbers are measured on them
    license: str | None = None  # SPDX identifier, if it is known

    @property
    def n_classes(self) -> int:
        return len(self.labels)

    def split(self, name: str) -> tuple[Sample, ...]:
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return splits[name]


def read_each(samples: Iterable[Sample], read: Callable[[bytes], T]) -> Iterator[tuple[Sample, T]]:
    """Yields each sample with the result of `read`, which takes the whole file.

    Logs and skips samples that are unreadable or for which `read` raises an `ImageError`.
    """
    # Files may have changed since they were checked.
    for sample in samples:
        try:
            found = read(sample.read())
        except (ImageError, OSError) as error:
            log.warning("%s is left out: %s", sample.name, reason_of(error))
        else:
            yield sample, found


def reason_of(error: ImageError | OSError) -> str:
    """Returns why a file cannot be read, without its path."""
    if isinstance(error, OSError):  # its text would contain the path
        return error.strerror or type(error).__name__
    return str(error)


class SamplePictures:
    """The pictures of readable samples, read again on every pass."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[Picture]:
        for sample in self._samples:
            yield Picture(sample.name, sample.read(), sample.index)

    def __len__(self) -> int:
        return len(self._samples)

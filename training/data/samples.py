"""What a data set is, once it was found, inspected and split."""

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
    """One labelled image file, on the disk or held in memory.

    Attributes:
        name: unique in its data set, such as "train/cat/1.jpg"; also where it stands in reports.
        index: the class it shows.
        path: the file, or None.
        data: the whole file where there is no path.
    """

    name: str
    index: int
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    def read(self) -> bytes:
        """Returns the whole file.

        Raises:
            OSError: it cannot be read.
        """
        if self.data is not None:
            return self.data
        if self.path is None:
            raise FileNotFoundError(self.name)
        return self.path.read_bytes()


@dataclass(frozen=True, slots=True)
class DataSet:
    """Readable pictures in three splits that share none.

    Attributes:
        name: of the folder, list or set.
        labels: C classes, by index.
        train: pictures to learn from.
        validation: pictures that pick the epoch and fit the calibration.
        test: pictures that everything reported is measured on.
        license: SPDX identifier where it is known.
    """

    name: str
    labels: tuple[Label, ...]
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]
    license: str | None = None

    @property
    def n_classes(self) -> int:
        """C."""
        return len(self.labels)

    def split(self, name: str) -> tuple[Sample, ...]:
        """Returns the split of that name, one of `SPLITS`."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return splits[name]


def read_each(samples: Iterable[Sample], read: Callable[[bytes], T]) -> Iterator[tuple[Sample, T]]:
    """Yields the samples that decode with what was read of them; warns of each that does not.

    Args:
        samples: perhaps changed since they were checked.
        read: makes something of a whole file, or raises an `ImageError`.
    """
    for sample in samples:
        try:
            found = read(sample.read())
        except (ImageError, OSError) as error:
            log.warning("%s is left out: %s", sample.name, reason_of(error))
        else:
            yield sample, found


def reason_of(error: ImageError | OSError) -> str:
    """Says why a file cannot be used, without its path, which a system's own message would hold."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)


class SamplePictures:
    """The pictures of samples, read anew on every pass.

    Args:
        samples: known to be readable.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[Picture]:
        for sample in self._samples:
            yield Picture(sample.name, sample.read(), sample.index)

    def __len__(self) -> int:
        return len(self._samples)

"""Loads samples as batches of pixels, in the order of `sampler`.

A file that vanishes or breaks during training is left out of its batch and logged once. It never
stops a run.

Shapes: N samples, B pictures of a batch, S = crop size in pixels.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contract.errors import ImageError
from contract.manifest import Preprocessing
from training.data.prepared import PreparedPictures
from training.data.sampler import order, share
from training.data.samples import Sample, reason_of

log = logging.getLogger(__name__)

Seed = tuple[int, ...]


class Transform(Protocol):
    """Turns a file into pixels, with or without augmentation."""

    @property
    def spec(self) -> Preprocessing:
        """The evaluation preprocessing of the network; its crop size is S."""
        ...

    def __call__(self, data: bytes, seed: Seed) -> Tensor:
        """Returns uint8, shape (3, S, S), 0..255; a pure function of the file and the seed.

        Raises:
            ImageError: the file is not an acceptable picture.
        """
        ...


@dataclass(frozen=True, slots=True)
class EvaluationTransform:
    """Returns exactly the pixels that the service gives to the network; ignores the seed."""

    spec: Preprocessing
    prepared: PreparedPictures = field(default_factory=PreparedPictures)  # caches nothing

    def __call__(self, data: bytes, seed: Seed = ()) -> Tensor:  # noqa: ARG002 - a Transform
        return to_tensor(self.prepared.pixels(data, self.spec))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the samples of an epoch are drawn, and the seed of their augmentation."""

    seed: int
    balanced: bool = False  # every class equally often; only when shuffled
    shuffled: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's part of a global batch. B is smaller, even 0, if files cannot be read."""

    images: Tensor  # uint8, (B, 3, S, S), 0..255
    indexes: Tensor  # int64, (B,), classes
    numbers: Tensor  # int64, (B,), positions in the samples
    global_size: int  # planned pictures in all processes, with those that cannot be read


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Copies pixels (S, S, 3) into a contiguous tensor (3, S, S), uint8."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class Batches:
    """Loads samples in batches, epoch by epoch.

    An epoch of N samples has ceil(N / batch_size) batches whose sizes differ by at most one. So
    there is no small last batch, which would disturb batch normalization, and no sample is dropped.

    Args:
        samples: N of them.
        transform: is pickled for the worker processes.
        batch_size: the largest batch, over all processes.
        sampling: None loads the samples in their own order with seed 0, as for evaluation.
        workers: number of decoding processes, at most one per processor; 0 decodes in this process.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        transform: Transform,
        *,
        batch_size: int,
        sampling: Sampling | None = None,
        workers: int = 0,
    ) -> None:
        self._samples = samples
        self._dataset = _Dataset(samples, transform)
        self._batch_size = batch_size
        self._sampling = sampling
        self._indexes = np.array([sample.index for sample in samples], dtype=np.int64)
        self._reported: set[int] = set()
        self._batch_sampler = _BatchSampler()
        self._loader = _loader(self._dataset, self._batch_sampler, min(workers, _processors()))

    def __len__(self) -> int:
        return math.ceil(len(self._samples) / self._batch_size)

    def epoch(
        self, epoch: int, *, first_step: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Yields the part of an epoch's batches that the process `rank` of `world` computes.

        Batches before `first_step` are skipped without reading their files.
        """
        sizes, tasks = [], []
        for positions in self._global_batches(epoch)[first_step:]:
            mine = positions[share(len(positions), rank, world)]
            sizes.append(len(positions))
            tasks.append([(int(number), self._seed(epoch, int(at))) for at, number in mine])

        for size, (images, indexes, numbers, failures) in zip(
            sizes, self._load(tasks), strict=True
        ):
            self._warn(failures)
            yield Batch(
                torch.from_numpy(images),
                torch.from_numpy(indexes),
                torch.from_numpy(numbers),
                size,
            )

    def close(self) -> None:
        self._loader = None  # its worker processes end with it

    def _global_batches(self, epoch: int) -> list[NDArray[np.int64]]:
        # For each batch, int64 (size, 2): position in the epoch, sample number.
        n = len(self._samples)
        numbers = np.arange(n)
        if self._sampling is not None and self._sampling.shuffled:
            numbers = order(
                n,
                self._sampling.seed,
                epoch,
                indexes=self._indexes,
                balanced=self._sampling.balanced,
            )
        rows = np.stack([np.arange(n), numbers], axis=1)  # (N, 2)
        return np.array_split(rows, len(self)) if n else []

    def _seed(self, epoch: int, position: int) -> Seed:
        # The position, not the sample: balanced sampling may show a sample twice in an epoch, and
        # each time it is to be augmented in another way.
        return (0 if self._sampling is None else self._sampling.seed, epoch, position)

    def _load(self, tasks: list[list[_Task]]) -> Iterator[_Arrays]:
        if self._loader is None:
            dataset = self._dataset
            return (dataset.collate([dataset[task] for task in batch]) for batch in tasks)
        self._batch_sampler.batches = tasks
        return iter(self._loader)

    def _warn(self, failures: tuple[_Failure, ...]) -> None:
        for number, reason in failures:
            if number not in self._reported:
                log.warning("%s is left out: %s", self._samples[number].name, reason)
            self._reported.add(number)


_Task = tuple[int, Seed]  # sample number, seed of its augmentation
_Failure = tuple[int, str]  # sample number, reason
_Row = tuple[NDArray[np.uint8], int, int] | _Failure  # pixels (3, S, S), class, sample number
# Images, classes, sample numbers, failures. Arrays rather than tensors: torch would pass tensors
# through shared memory, of which containers have little.
_Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], tuple[_Failure, ...]]


class _Dataset(torch.utils.data.Dataset[Any]):
    """Reads and transforms samples; runs in the worker processes."""

    def __init__(self, samples: Sequence[Sample], transform: Transform) -> None:
        self._samples = samples
        self._transform = transform

    def __getitem__(self, task: _Task) -> _Row:
        number, seed = task
        sample = self._samples[number]
        try:
            pixels = self._transform(sample.read(), seed)
        except (ImageError, OSError) as error:
            return number, reason_of(error)
        return pixels.numpy(), sample.index, number

    def collate(self, rows: list[_Row]) -> _Arrays:
        good = [row for row in rows if len(row) == 3]
        failures = tuple(row for row in rows if len(row) == 2)

        side = self._transform.spec.crop_size_px
        images = np.empty((len(good), 3, side, side), dtype=np.uint8)
        for image, row in zip(images, good, strict=True):
            image[:] = row[0]
        indexes = np.array([row[1] for row in good], dtype=np.int64)
        numbers = np.array([row[2] for row in good], dtype=np.int64)
        return images, indexes, numbers, failures


class _BatchSampler:
    """Tells the loader what to load. A new loader per epoch would start its workers anew."""

    def __init__(self) -> None:
        self.batches: list[list[_Task]] = []

    def __iter__(self) -> Iterator[list[_Task]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _loader(dataset: _Dataset, batch_sampler: _BatchSampler, workers: int) -> Any:
    if workers == 0:
        return None
    return torch.utils.data.DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        collate_fn=dataset.collate,
        num_workers=workers,
        persistent_workers=True,
        # A fork would copy locks that other threads hold.
        multiprocessing_context=multiprocessing.get_context("spawn"),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else the loader draws from the global one
    )


def _start_worker(_: int) -> None:
    # Ctrl-C signals the whole process group. The main process decides what to do; the workers end
    # when it does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _processors() -> int:
    # A container may have fewer than the machine.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

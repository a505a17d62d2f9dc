"""From samples to batches of pixels, batch by batch and part by part as `training.data.sampler` says.

A file that vanishes or breaks while training runs is left out of its batch with one line; it never
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
    """Makes pixels of a file; an `Augmentation`, or `EvaluationTransform` for evaluation."""

    @property
    def spec(self) -> Preprocessing:
        """The evaluation preprocessing of the network; its crop size is S."""
        ...

    def __call__(self, data: bytes, seed: Seed) -> Tensor:
        """Returns uint8, shape (3, S, S), 0..255, as a pure function of file and seed.

        Raises:
            ImageError: the file is not an acceptable picture.
        """
        ...


@dataclass(frozen=True, slots=True)
class EvaluationTransform:
    """The very pixels the service would see, without any randomness.

    Attributes:
        spec: how it prepares them.
        prepared: where they are kept, if they are.
    """

    spec: Preprocessing
    prepared: PreparedPictures = field(default_factory=PreparedPictures)

    def __call__(self, data: bytes, seed: Seed = ()) -> Tensor:  # noqa: ARG002 - a Prepare
        """Returns uint8, shape (3, S, S), 0..255, of a file."""
        return to_tensor(self.prepared.pixels(data, self.spec))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the pictures of an epoch are drawn.

    Attributes:
        seed: the run's.
        balanced: every class equally often.
        shuffled: in a random order; otherwise in the samples' own, and `balanced` has no meaning.
    """

    seed: int
    balanced: bool = False
    shuffled: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's part of a global batch.

    Attributes:
        images: uint8, shape (B, 3, S, S), 0..255; B is smaller, even 0, where files broke.
        indexes: int64, shape (B,), classes.
        numbers: int64, shape (B,), positions in the samples.
        global_size: pictures planned for this batch over all processes.
    """

    images: Tensor
    indexes: Tensor
    numbers: Tensor
    global_size: int


def to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Returns pixels (S, S, 3) as a tensor (3, S, S) of its own, uint8."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


class Batches:
    """The batches of samples, epoch after epoch.

    An epoch of N samples has ceil(N / batch_size) batches whose sizes differ by one at most: there
    is no small last batch, which batch normalization would take badly, and none is left out.

    Args:
        samples: N of them.
        prepare: makes pixels of a file. It is sent to worker processes.
        batch_size: over all processes, at most.
        drawing: None shows the samples in their own order without any randomness, as evaluation
            does.
        workers: processes that decode; 0 decodes in this one. They are started anew rather than
            forked, because a fork copies locks other threads may hold; no more than there are
            processors.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        prepare: Transform,
        *,
        batch_size: int,
        drawing: Sampling | None = None,
        workers: int = 0,
    ) -> None:
        self._samples = samples
        self._work = _Work(samples, prepare)
        self._batch_size = batch_size
        self._drawing = drawing
        self._indexes = np.array([sample.index for sample in samples], dtype=np.int64)
        self._reported: set[int] = set()
        self._plan = _Plan()
        self._loader = _loader(self._work, self._plan, min(workers, _processors()))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self._samples) / self._batch_size)

    def epoch(
        self, epoch: int, *, first_step: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]:
        """Yields one process's batches of an epoch.

        Args:
            epoch: 0 upwards.
            first_step: batches before it are skipped without reading a file.
            rank: of this process.
            world: number of processes.
        """
        sizes, tasks = [], []
        for positions in self._global_batches(epoch)[first_step:]:
            mine = positions[share(len(positions), rank, world)]
            sizes.append(len(positions))
            tasks.append([(int(number), self._seed(epoch, int(at))) for at, number in mine])
        for size, (images, indexes, numbers, failures) in zip(sizes, self._run(tasks), strict=True):
            self._tell(failures)
            yield Batch(
                torch.from_numpy(images),
                torch.from_numpy(indexes),
                torch.from_numpy(numbers),
                size,
            )

    def close(self) -> None:
        """Ends the worker processes, if there are any."""
        self._loader = None

    def _global_batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """Returns (position in the epoch, sample number) rows, int64 (size, 2), batch by batch."""
        n = len(self._samples)
        numbers = np.arange(n)
        if self._drawing is not None and self._drawing.shuffled:
            numbers = order(
                n,
                self._drawing.seed,
                epoch,
                indexes=self._indexes,
                balanced=self._drawing.balanced,
            )
        rows = np.stack([np.arange(n), numbers], axis=1)  # (N, 2)
        return np.array_split(rows, len(self)) if n else []

    def _seed(self, epoch: int, position: int) -> Seed:
        # The position rather than the sample: balanced drawing may show a sample twice an epoch.
        return (0 if self._drawing is None else self._drawing.seed, epoch, position)

    def _run(self, tasks: list[list[_Task]]) -> Iterator[_Answer]:
        if self._loader is None:
            return (self._work.collate([self._work[task] for task in batch]) for batch in tasks)
        self._plan.batches = tasks
        return iter(self._loader)

    def _tell(self, failures: tuple[_Failure, ...]) -> None:
        for number, reason in failures:
            if number not in self._reported:
                log.warning("%s is left out: %s", self._samples[number].name, reason)
            self._reported.add(number)


_Task = tuple[int, Seed]  # sample number, seed of its augmentation
_Failure = tuple[int, str]  # sample number, reason
_Row = tuple[NDArray[np.uint8], int, int] | _Failure  # pixels (3, S, S), class, sample number
# Images, classes, sample numbers, failures. Arrays rather than tensors: torch would pass tensors
# through shared memory, of which containers have little.
_Answer = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], tuple[_Failure, ...]]


class _Work(torch.utils.data.Dataset[Any]):
    """Reads, decodes and prepares one sample; the part that runs in worker processes."""

    def __init__(self, samples: Sequence[Sample], prepare: Transform) -> None:
        self._samples = samples
        self._prepare = prepare

    def __getitem__(self, task: _Task) -> _Row:
        number, seed = task
        sample = self._samples[number]
        try:
            pixels = self._prepare(sample.read(), seed)
        except (ImageError, OSError) as error:
            return number, reason_of(error)
        return pixels.numpy(), sample.index, number

    def collate(self, rows: list[_Row]) -> _Answer:
        good = [row for row in rows if len(row) == 3]
        failures = tuple(row for row in rows if len(row) == 2)
        side = self._prepare.spec.crop_size_px
        images = np.empty((len(good), 3, side, side), dtype=np.uint8)
        for image, row in zip(images, good, strict=True):
            image[:] = row[0]
        indexes = np.array([row[1] for row in good], dtype=np.int64)
        numbers = np.array([row[2] for row in good], dtype=np.int64)
        return images, indexes, numbers, failures


class _Plan:
    """What the loader is to load next; replaced before each epoch, so that workers stay alive."""

    def __init__(self) -> None:
        self.batches: list[list[_Task]] = []

    def __iter__(self) -> Iterator[list[_Task]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _loader(work: _Work, plan: _Plan, workers: int) -> Any:
    if workers == 0:
        return None
    return torch.utils.data.DataLoader(
        work,
        batch_sampler=plan,
        collate_fn=work.collate,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context=multiprocessing.get_context("spawn"),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # or it would draw from the global one
    )


def _start_worker(_: int) -> None:
    # Signals go to the whole process group; the main process decides what happens, and its end is
    # noticed by the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

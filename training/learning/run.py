"""The inputs and the result of a training run.

Shapes: B pictures of a batch, S = crop size in pixels, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from contract.manifest import Preprocessing
from training.config.config import RunConfig
from training.data.augment import Augmentation
from training.data.batches import Batches, EvaluationTransform, Sampling
from training.data.prepared import PreparedPictures
from training.data.samples import DataSet
from training.errors import DataRefused
from training.learning.history import EpochRecord
from training.learning.validation import ValidationScore
from training.system.distributed import World


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRun:
    """The network to train, its data and its folder.

    Attributes:
        network: normalised float32 pixels (B, 3, S, S) to logits (B, C); it is trained in place.
        spec: its evaluation preprocessing.
        folder: for checkpoints and logs; it is created if missing.
        prepared: caches the validation pictures.
        clock: monotonic seconds.
    """

    network: nn.Module
    spec: Preprocessing
    data: DataSet
    config: RunConfig
    folder: Path
    world: World
    prepared: PreparedPictures = field(default_factory=PreparedPictures)
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True, eq=False)
class TrainingResult:
    """The trained network and its history."""

    network: nn.Module  # the run's network with the weights of the best epoch, in evaluation mode
    history: tuple[EpochRecord, ...]
    best: EpochRecord

    @property
    def score(self) -> ValidationScore:
        best = self.best
        return ValidationScore(
            best.validation_top1,
            best.validation_nll,
            best.validation_nll_calibrated,
            best.validation_temperature,
        )


def make_batches(run: TrainingRun, cleanup: ExitStack) -> tuple[Batches, Batches]:
    """Returns training and validation batches; `cleanup` closes them.

    Raises:
        DataRefused: a split is empty.
    """
    for split in ("train", "validation"):
        if not run.data.split(split):
            raise DataRefused(f"{run.data.name}: the {split} split has no pictures")

    config = run.config
    batch_size, workers = config.loop.batch_size, config.data.workers
    train_batches = Batches(
        run.data.train,
        Augmentation(config.augment, run.spec),
        batch_size=batch_size,
        sampling=Sampling(config.seed, balanced=config.data.sampling == "balanced"),
        workers=workers,
    )

    cached = run.prepared.has_room(len(run.data.validation), run.spec)
    validation_batches = Batches(
        run.data.validation,
        EvaluationTransform(run.spec, run.prepared),
        batch_size=batch_size,
        workers=0 if cached else workers,  # the cache is in this process
    )
    for batches in (train_batches, validation_batches):
        cleanup.callback(batches.close)
    return train_batches, validation_batches

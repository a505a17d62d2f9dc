"""What a training run is given and what it ends with.

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
from training.system.distributed import World


@dataclass(frozen=True, slots=True, eq=False)
class TrainingRun:
    """What is trained, on what, and where it is written.

    Attributes:
        network: float32 (B, 3, S, S), normalised, to logits (B, C); it is trained in place.
        spec: its evaluation preprocessing.
        data: the pictures.
        config: with `[optimizer]` and `[schedule]`.
        folder: of checkpoints and logs; made where it is missing.
        world: the processes and the device; see `training.system.distributed.joined`.
        prepared: keeps the validation pictures.
        clock: seconds, monotonic.
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
    """What a run ends with.

    Attributes:
        network: the one of the run, with the weights of the best epoch, in evaluation mode.
        history: every epoch.
        best: the epoch whose weights were kept.
    """

    network: nn.Module
    history: tuple[EpochRecord, ...]
    best: EpochRecord


def make_batches(run: TrainingRun, cleanup: ExitStack) -> tuple[Batches, Batches]:
    """Returns the batches to train and to validate on; they are closed at the end.

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
    kept = run.prepared.has_room(len(run.data.validation), run.spec)
    validation_batches = Batches(
        run.data.validation,
        EvaluationTransform(run.spec, run.prepared),
        batch_size=batch_size,
        workers=0 if kept else workers,  # workers could not keep what they prepare
    )
    for batches in (train_batches, validation_batches):
        cleanup.callback(batches.close)
    return train_batches, validation_batches

"""A whole training run: epochs, validation, the best weights, checkpoints and resuming.

All random numbers depend only on the seed and the step. A resumed run therefore ends with exactly
the weights of an uninterrupted one, on the same machine with the same number of threads.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from training.data.batches import Batch
from training.errors import CheckpointRefused, DataRefused, LossNotFinite
from training.learning import learner, optim, progress
from training.learning.checkpoint import Checkpoints, changes, identity_of
from training.learning.history import EpochRecord, RunLength, StepRecord, best_of, is_over
from training.learning.run import TrainingResult, TrainingRun, make_batches
from training.learning.validation import ValidationScore, score_validation
from training.system.signals import StopFlag, raise_for, stop_on_signals

__all__ = ["TrainingResult", "TrainingRun", "train"]

log = logging.getLogger(__name__)

Weights = dict[str, torch.Tensor]


def train(run: TrainingRun, *, resume: bool = False) -> TrainingResult:
    """Trains a network; with `resume` it continues from the newest checkpoint, if there is one.

    Raises:
        ConfigInvalid: the config has no `[optimizer]`, or names something that does not exist.
        DataRefused: the training or validation split is empty.
        CheckpointRefused: the folder holds a run and `resume` is not set, or it is another run's.
        LossNotFinite: training diverged; the last checkpoint is from before that.
        Interrupted: a signal stopped the run after a checkpoint; `Terminated` for SIGTERM.
    """
    with stop_on_signals() as flag, learner.deterministic(), ExitStack() as cleanup:
        return _Training(run, flag, cleanup).go(resume)


@dataclass(slots=True)
class _Sums:
    """Totals of the current epoch."""

    steps: int = 0
    loss: float = 0.0
    hits: int = 0
    n_images: int = 0
    train_s: float = 0.0


class _Training:
    """A run in progress.

    Its state is the finished epochs (`history`), the current one (`sums`), the learner's tensors and
    the best weights. A checkpoint holds exactly these.
    """

    def __init__(self, run: TrainingRun, flag: StopFlag, cleanup: ExitStack) -> None:
        self.run, self.flag, self.cleanup = run, flag, cleanup
        self.world, self.loop = run.world, run.config.loop

        _, schedule = optim.second_stage(run.config)
        self.train_batches, self.validation_batches = make_batches(run, cleanup)
        epoch_steps = math.ceil(len(self.train_batches) / self.loop.accumulate)
        self.extent = RunLength(schedule.epochs, epoch_steps)

        self.checkpoints = Checkpoints(run.folder, identity_of(run.config, run.data))
        self.history: list[EpochRecord] = []
        self.sums = _Sums()
        self.best: Weights = {}  # empty until the first epoch ends
        self.callbacks: Sequence[progress.Callback] = ()

    @property
    def step(self) -> int:
        return len(self.history) * self.extent.epoch_steps + self.sums.steps

    def _at(self) -> tuple[int, int]:
        return len(self.history), self.sums.steps

    def go(self, resume: bool) -> TrainingResult:
        found = self.world.first(lambda: self._find(resume))
        self.learner = learner.Learner(self.run, self.extent.epoch_steps)
        if found is not None:
            self._restore(self.checkpoints.open(found))
        self._open_callbacks()
        self.written, self.written_s = self._at(), self.run.clock()

        loop = self.loop
        while not is_over(self.history, self.extent.epochs, loop.best_by, loop.patience_epochs):
            self._train_epoch()
            self._finish_epoch()

        return self._result()

    def _find(self, resume: bool) -> bytes | None:
        if not resume and self.checkpoints.exist:
            raise CheckpointRefused(
                f"{self.run.folder} holds the checkpoints of a run; resume it or use another folder"
            )
        return self.checkpoints.read_last()

    def _train_epoch(self) -> None:
        epoch, accumulate = len(self.history), self.loop.accumulate
        stream = self.train_batches.epoch(
            epoch,
            first_step=self.sums.steps * accumulate,
            rank=self.world.rank,
            world=self.world.size,
        )

        last_s = self.run.clock()
        while batches := list(islice(stream, accumulate)):
            first_batch = epoch * len(self.train_batches) + self.sums.steps * accumulate
            outcome = self._learn(batches, first_batch)

            now_s = self.run.clock()
            self._note_step(outcome, now_s - last_s)
            last_s = now_s
            self._stop_if(outcome.signals)
            self._write_if_due()

    def _learn(self, batches: list[Batch], first_batch: int) -> learner.StepOutcome:
        try:
            return self.learner.step(batches, first_batch, self.step, self.flag.counts)
        except LossNotFinite as error:
            raise self._diverged(error, f"step {self.step + 1}") from error

    def _note_step(self, outcome: learner.StepOutcome, seconds: float) -> None:
        sums = self.sums
        sums.steps += 1
        sums.loss += outcome.loss_sum
        sums.hits += outcome.hits
        sums.n_images += outcome.n_images
        sums.train_s += seconds

        record = StepRecord(
            epoch=len(self.history) + 1,
            step=self.step,
            loss=outcome.loss_sum / max(outcome.n_images, 1),
            learning_rate=self.learner.learning_rate,
            gradient_norm=outcome.gradient_norm,
            n_images=outcome.n_images,
            images_per_s=outcome.n_images / max(seconds, 1e-9),
        )
        for callback in self.callbacks:
            callback.on_step(record)

    def _finish_epoch(self) -> None:
        began_s = self.run.clock()
        score = self._validate()

        sums, n_images = self.sums, max(self.sums.n_images, 1)
        validation_s = self.run.clock() - began_s
        record = EpochRecord(
            epoch=len(self.history) + 1,
            step=self.step,
            train_loss=sums.loss / n_images,
            train_top1=sums.hits / n_images,
            validation_nll=score.nll,
            validation_nll_calibrated=score.nll_calibrated,
            validation_temperature=score.temperature,
            validation_top1=score.top1,
            learning_rate=self.learner.learning_rate,
            images_per_s=sums.n_images / max(sums.train_s, 1e-9),
            seconds=sums.train_s + validation_s,
        )
        self.history.append(record)
        self.sums = _Sums()

        is_best = best_of(self.history, self.loop.best_by) is record
        if is_best:
            kept = self.learner.kept.state_dict()
            self.best = {name: value.detach().cpu().clone() for name, value in kept.items()}

        for callback in self.callbacks:
            callback.on_epoch(record, is_best)
        if self.world.is_first:
            if is_best:
                self._write_best()
            self._write_last()
        self._stop_if(self.world.sum(self.flag.counts()))

    def _validate(self) -> ValidationScore:
        self.world.share_buffers(self.learner.kept)
        parts = []  # this process's logits and class indexes
        rank, size = self.world.rank, self.world.size
        for batch in self.validation_batches.epoch(0, rank=rank, world=size):
            parts.append((self.learner.logits(batch), batch.indexes.numpy()))
            self._stop_if(self.world.sum(self.flag.counts()))
            self._write_if_due()

        found = [part for parts in self.world.gather(parts) for part in parts]
        logits, indexes = (np.concatenate(column) for column in zip(*found, strict=True))
        if len(indexes) == 0:
            raise DataRefused("none of the validation pictures can be read any more")

        # All processes must decide the same from these numbers, so they need identical bits.
        score = self.world.first(lambda: score_validation(logits, indexes))
        if not math.isfinite(score.nll):
            error = LossNotFinite(f"the validation NLL is {score.nll}")
            raise self._diverged(error, f"after step {self.step}")
        return score

    def _result(self) -> TrainingResult:
        self.run.network.load_state_dict(self.best)
        self.run.network.eval()
        best = best_of(self.history, self.loop.best_by)
        return TrainingResult(self.run.network, tuple(self.history), best)

    def _stop_if(self, signals: Sequence[float]) -> None:
        if not any(signals):
            return

        if self.world.is_first and self._at() != self.written:
            self._write_last()
        self.world.barrier()  # no process ends before the checkpoint is written
        raise_for(
            signals,
            f"stopped after step {self.step} of {self.extent.steps}; the checkpoint is in "
            f"{self.checkpoints.folder}; resume the run with the same config and data to continue",
        )

    def _diverged(self, error: LossNotFinite, where: str) -> LossNotFinite:
        epoch = len(self.history) + 1
        rate = self.learner.learning_rate
        kept = "the checkpoint before it is kept" if self.checkpoints.exist else "nothing was saved"
        return LossNotFinite(
            f"{error} in epoch {epoch}, {where}; {kept}. Try a lower optimizer.learning_rate (now "
            f'{rate:g}), optimizer.clip_norm = 1.0, schedule.warmup_epochs or loop.precision = "fp32"'
        )

    def _write_if_due(self) -> None:
        is_new = self._at() != self.written
        due_s = self.written_s + self.loop.checkpoint_s
        if self.world.is_first and is_new and self.run.clock() >= due_s:
            self._write_last()

    def _write_last(self) -> None:
        try:
            tensors = self.learner.state()
        except LossNotFinite as error:
            raise self._diverged(error, f"after step {self.step}") from error
        self.checkpoints.write_last(
            {
                **tensors,
                "sums": asdict(self.sums),
                "history": [asdict(record) for record in self.history],
                "best": self.best,
                "surroundings": self.learner.surroundings,
            }
        )
        self.written = self._at()
        self.written_s = self.run.clock()

    def _write_best(self) -> None:
        record = best_of(self.history, self.loop.best_by)
        self.checkpoints.write_best({"network": self.best, "epoch": asdict(record)})

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            self.learner.restore(state)
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointRefused(f"the checkpoint is of another network: {error}") from error
        self.sums = _Sums(**state["sums"])
        try:
            self.history = [EpochRecord(**values) for values in state["history"]]
        except TypeError as error:
            raise CheckpointRefused("the checkpoint is of another release; start anew") from error
        self.best = state["best"]

        if self.world.is_first:
            if self.best:
                self._write_best()
            log.info("resuming after step %d of %d", self.step, self.extent.steps)
            for line in changes(state["surroundings"], self.learner.surroundings):
                log.info("%s", line)

    def _open_callbacks(self) -> None:
        if not self.world.is_first:
            return
        extent = RunLength(self.extent.epochs, self.extent.epoch_steps, self.step)
        progress.cut_log(self.run.folder / progress.LOG_FILE, self.step, len(self.history))
        self.callbacks = progress.open_callbacks(self.run.folder, extent)
        for callback in self.callbacks:
            self.cleanup.callback(callback.close)

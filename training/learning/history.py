"""Records of steps and epochs, and the decisions that depend on them.

All functions depend on the records alone, so a resumed run decides as an uninterrupted one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Metric = Literal["top1", "nll"]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step."""

    epoch: int  # from 1
    step: int  # of the run, from 1
    loss: float  # mean over the pictures, with smoothing, class weights and mixing
    learning_rate: float  # of the head
    gradient_norm: float  # before clipping
    n_images: int  # over all processes
    images_per_s: float  # including reading, decoding and augmenting


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch with its validation, which measures the weights that are kept."""

    epoch: int  # from 1
    step: int  # optimizer steps of the run so far
    train_loss: float  # mean over the augmented pictures, with smoothing, class weights and mixing
    train_top1: float  # 0..1, against the main class of mixed targets
    validation_nll: float  # mean negative log-likelihood, natural logarithm
    validation_nll_calibrated: float  # the same at the temperature that lowers it most
    validation_temperature: float  # that temperature
    validation_top1: float  # 0..1
    learning_rate: float  # of the head, at the last step
    images_per_s: float  # in training, including reading, decoding and augmenting
    seconds: float  # training and validation


@dataclass(frozen=True, slots=True)
class RunLength:
    """The length of a run, and where it starts or resumes."""

    epochs: int
    epoch_steps: int  # optimizer steps per epoch
    step: int = 0  # already done

    @property
    def steps(self) -> int:
        return self.epochs * self.epoch_steps


def merit(top1: float, nll: float, metric: Metric) -> tuple[float, float]:
    """Returns a sort key that is greater for better weights; the other metric breaks ties."""
    return (top1, -nll) if metric == "top1" else (-nll, top1)


def best_of(history: Sequence[EpochRecord], metric: Metric) -> EpochRecord:
    # max returns the first of equal epochs.
    return max(
        history, key=lambda one: merit(one.validation_top1, one.validation_nll_calibrated, metric)
    )


def is_over(
    history: Sequence[EpochRecord], epochs: int, metric: Metric, patience_epochs: int | None
) -> bool:
    """Returns True after all epochs, or after `patience_epochs` without a better one."""
    if len(history) >= epochs:
        return True
    if not history or patience_epochs is None:
        return False
    return len(history) - best_of(history, metric).epoch >= patience_epochs

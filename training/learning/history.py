"""What a run remembers of its steps and epochs, and what follows from that.

Everything here is a pure function of the records, so a resumed run decides as the first one would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Metric = Literal["top1", "nll"]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        epoch: 1 upwards.
        step: optimizer steps of the run so far, this one included.
        loss: mean over the pictures of the step, with smoothing, weights and mixing.
        learning_rate: of the head.
        gradient_norm: before clipping.
        n_images: pictures of the step, over all processes.
        images_per_s: reading, decoding and augmenting included.
    """

    epoch: int
    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    n_images: int
    images_per_s: float


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch and its validation.

    Attributes:
        epoch: 1 upwards.
        step: optimizer steps of the run at its end.
        train_loss: mean over its pictures, as they were seen, with smoothing, weights and mixing.
        train_top1: share of its pictures whose target's main class was put first.
        validation_nll: mean negative log-likelihood, natural logarithm, of the weights that are
            kept: their moving average where there is one.
        validation_top1: share of the validation pictures whose class was put first.
        learning_rate: of the head, at its last step.
        images_per_s: trained pictures, reading, decoding and augmenting included.
        seconds: of training and validation.
    """

    epoch: int
    step: int
    train_loss: float
    train_top1: float
    validation_nll: float
    validation_top1: float
    learning_rate: float
    images_per_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class RunLength:
    """How long a run is and where it stands when it starts or goes on.

    Attributes:
        epochs: of the whole run.
        epoch_steps: optimizer steps of each.
        step: done already.
    """

    epochs: int
    epoch_steps: int
    step: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.epoch_steps


def merit(top1: float, nll: float, metric: Metric) -> tuple[float, float]:
    """Returns what is greater for better weights: the metric first, the other one between equals.

    Args:
        top1: share of the validation pictures, 0..1.
        nll: mean negative log-likelihood there.
        metric: which counts.
    """
    return (top1, -nll) if metric == "top1" else (-nll, top1)


def best_of(history: Sequence[EpochRecord], metric: Metric) -> EpochRecord:
    """Returns the best epoch by `merit`, of equal ones the first.

    Args:
        history: one epoch or more.
        metric: which counts.
    """
    return max(history, key=lambda one: merit(one.validation_top1, one.validation_nll, metric))


def is_over(
    history: Sequence[EpochRecord], epochs: int, metric: Metric, patience_epochs: int | None
) -> bool:
    """Whether all epochs are done, or the last so many were no better than an earlier one."""
    if len(history) >= epochs:
        return True
    if not history or patience_epochs is None:
        return False
    return len(history) - best_of(history, metric).epoch >= patience_epochs

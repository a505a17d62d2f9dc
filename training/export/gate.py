"""The gate of an int8 or float16 graph: what it loses against the float graph it was made from.

With labelled pictures, the loss is the drop of top-1. Without, it is how often both graphs agree on the
first class, over bundled pictures on which the float graph is decided. Those are crops of a dozen
photographs and show few of the classes, so they are harder than photographs: the committed int8 model
agrees on 86% of the crops and on 97% of 300 photographs.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from contract.preprocessing import read_input
from training.data.photographs import picture_files, read_photographs
from training.data.pictures import Picture, ReadInput
from training.errors import HalfPrecisionFailed, PrecisionFailed, QuantizationFailed
from training.evaluation.scorer import accuracy, agreement_percent

log = logging.getLogger(__name__)

_N_HELD_OUT: Final = 400
_HELD_OUT_SEED: Final = 1_000_003  # far from any calibration seed

# Without a label, a picture counts only if the first class leads the second by this probability. On the
# others, a tiny error changes the first class.
_DECIDED_LEAD: Final = 0.2

_FAILURES: Final[dict[str, type[PrecisionFailed]]] = {
    "int8": QuantizationFailed,
    "fp16": HalfPrecisionFailed,
}
_LIMITS: Final = {"int8": (2.0, 80.0), "fp16": (0.2, 99.0)}  # points of top-1, percent agreement


@dataclass(frozen=True, slots=True)
class LowerPrecision:
    """A lower precision and its limits.

    Attributes:
        max_drop: points of top-1, for labelled pictures; None takes the default of the precision.
        min_agreement_percent: of first classes with the float graph, for pictures without labels;
            likewise.
        or_float: publish the float graph if the gate fails.
    """

    precision: Literal["int8", "fp16"]
    max_drop: float | None = None
    min_agreement_percent: float | None = None
    or_float: bool = False

    @property
    def limits(self) -> tuple[float, float]:
        """The maximum drop and the minimum agreement in force."""
        default_drop, default_agreement = _LIMITS[self.precision]
        return (
            default_drop if self.max_drop is None else self.max_drop,
            default_agreement if self.min_agreement_percent is None else self.min_agreement_percent,
        )


@dataclass(frozen=True, slots=True)
class PrecisionReference:
    """The float graph's probabilities for the gate's N pictures."""

    pictures: Iterable[Picture]  # the same on every pass
    answers: NDArray[np.float32]  # (N, C)
    indexes: NDArray[np.int64] | None = None  # (N,), the classes; None if unknown
    prepare: ReadInput = read_input


@dataclass(frozen=True, slots=True)
class PrecisionLoss:
    """The loss of a graph of lower precision against the float graph."""

    drop_percent: float | None  # points of top-1; None without labels
    agreement_percent: float  # of first classes
    max_difference: float  # of a probability


def held_out_pictures() -> list[Picture]:
    """Returns bundled pictures that no calibration has seen, though from the same photographs."""
    return list(picture_files(read_photographs(), _N_HELD_OUT, seed=_HELD_OUT_SEED))


def pass_gate(
    answers: NDArray[np.float32], reference: PrecisionReference, target: LowerPrecision
) -> PrecisionLoss:
    """Returns a graph's loss if its target allows it.

    Args:
        answers: the graph's probabilities for the reference's pictures, float32, shape (N, C).
        reference: the float graph's.
        target: the limits.

    Raises:
        PrecisionFailed: of the target's kind; the loss is too large, or no picture is decided.
    """
    counted = decided(reference)
    if not counted.any():
        raise _FAILURES[target.precision](
            "the float graph is undecided on every bundled picture; pass pictures of its own classes "
            "with --evaluate"
        )

    loss = PrecisionLoss(
        drop_percent=_drop(answers, reference, target.precision),
        agreement_percent=agreement_percent(answers[counted], reference.answers[counted]),
        max_difference=float(f"{np.abs(answers - reference.answers).max():.3g}"),
    )

    drop = loss.drop_percent
    log.info(
        "%s: same first class as float in %.2f%% of %d pictures%s",
        target.precision,
        loss.agreement_percent,
        counted.sum(),
        f", {drop:.2f} points of top-1 lost" if drop is not None else "",
    )

    _check(loss, target)
    return loss


def decided(reference: PrecisionReference) -> NDArray[np.bool_]:
    """Returns which pictures count, bool, shape (N,): all if they have labels, else the decided ones."""
    if reference.indexes is not None:
        return np.ones(len(reference.answers), dtype=np.bool_)
    second, first = np.sort(reference.answers, axis=1)[:, -2:].T  # (N,) each
    found: NDArray[np.bool_] = first - second >= _DECIDED_LEAD
    return found


def _check(loss: PrecisionLoss, target: LowerPrecision) -> None:
    name, failure = target.precision, _FAILURES[target.precision]
    max_drop, min_agreement_percent = target.limits
    if loss.drop_percent is None and loss.agreement_percent < min_agreement_percent:
        raise failure(
            f"{name} and float agree in {loss.agreement_percent:.2f}% of first classes, "
            f"the limit is {min_agreement_percent:g}%"
        )

    if loss.drop_percent is not None and loss.drop_percent > max_drop:
        raise failure(
            f"{name} costs {loss.drop_percent:.2f} points of top-1, the limit is {max_drop:g}"
        )


def _drop(
    answers: NDArray[np.float32], reference: PrecisionReference, dataset: str
) -> float | None:
    if reference.indexes is None:
        return None
    before = accuracy(reference.answers, reference.indexes, "float").top1_percent
    after = accuracy(answers, reference.indexes, dataset).top1_percent
    return round(before - after, 3)

"""The judge of an int8 or float16 graph: what it loses against the float graph it was made of.

Where labelled pictures are given it is the drop of top-1. Otherwise it is how often both graphs
agree on the first class, over free pictures on which the float graph is decided. Crops of a dozen
photographs show few of the classes, so this judge is harder than photographs: the committed int8
model agrees on 86 % of such crops and on 97 % of 300 photographs.

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
_DECIDED_LEAD: Final = 0.2
"""By how much the first class must be ahead of the second for a picture to judge without a label."""

_HELD_OUT_SEED: Final = 1_000_003  # far from any calibration seed
_FAILURES: Final[dict[str, type[PrecisionFailed]]] = {
    "int8": QuantizationFailed,
    "fp16": HalfPrecisionFailed,
}
_LIMITS: Final = {"int8": (2.0, 80.0), "fp16": (0.2, 99.0)}


@dataclass(frozen=True, slots=True)
class LowerPrecision:
    """A precision to make a graph of, and what that may cost.

    Attributes:
        precision: "int8" or "fp16".
        max_drop: points of top-1, judged where there are labelled pictures; None takes the usual.
        min_agreement_percent: of first classes with the float graph, judged on free pictures
            otherwise; likewise.
        or_float: publish the float graph where this one fails its gate.
    """

    precision: Literal["int8", "fp16"]
    max_drop: float | None = None
    min_agreement_percent: float | None = None
    or_float: bool = False

    @property
    def limits(self) -> tuple[float, float]:
        """The drop and the agreement in force."""
        drop, agreement = self.max_drop, self.min_agreement_percent
        usual_drop, usual_agreement = _LIMITS[self.precision]
        return (
            usual_drop if drop is None else drop,
            usual_agreement if agreement is None else agreement,
        )


@dataclass(frozen=True, slots=True)
class PrecisionReference:
    """What the float graph answers to the pictures that judge another one.

    Attributes:
        pictures: N files, the same on every pass.
        answers: float32, shape (N, C): the float graph's probabilities.
        indexes: int64, shape (N,): the class each picture shows; None where that is unknown.
        prepare: makes input rows of the files.
    """

    pictures: Iterable[Picture]
    answers: NDArray[np.float32]
    indexes: NDArray[np.int64] | None = None
    prepare: ReadInput = read_input


@dataclass(frozen=True, slots=True)
class PrecisionLoss:
    """What a graph of lower precision loses.

    Attributes:
        drop_percent: top-1 of the float graph minus its own, in points; None without labels.
        agreement_percent: of first classes with the float graph.
        max_difference: of a probability from the float graph.
    """

    drop_percent: float | None
    agreement_percent: float
    max_difference: float


def held_out_pictures() -> list[Picture]:
    """Returns free pictures that no calibration has seen, though of the same photographs."""
    return list(picture_files(read_photographs(), _N_HELD_OUT, seed=_HELD_OUT_SEED))


def judge(
    answers: NDArray[np.float32], reference: PrecisionReference, target: LowerPrecision
) -> PrecisionLoss:
    """Lets a graph pass if it loses no more than its target allows.

    Args:
        answers: float32, shape (N, C): its probabilities for the pictures of the reference.
        reference: the float graph's.
        target: the limits.

    Raises:
        PrecisionFailed: of the target's kind; it loses more, or there is nothing to judge it by.
    """
    judges = decided(reference)
    if not judges.any():
        raise _FAILURES[target.precision](
            "the float graph is undecided on every free picture; judge it on pictures of its own "
            "classes with --evaluate"
        )
    loss = PrecisionLoss(
        drop_percent=_drop(answers, reference, target.precision),
        agreement_percent=agreement_percent(answers[judges], reference.answers[judges]),
        max_difference=float(f"{np.abs(answers - reference.answers).max():.3g}"),
    )
    drop = loss.drop_percent
    log.info(
        "%s: same first class as float in %.2f %% of %d pictures%s",
        target.precision,
        loss.agreement_percent,
        judges.sum(),
        f", {drop:.2f} points of top-1 lost" if drop is not None else "",
    )
    _check(loss, target)
    return loss


def decided(reference: PrecisionReference) -> NDArray[np.bool_]:
    """Tells which pictures judge, bool, shape (N,): all with a class, else the decided ones."""
    if reference.indexes is not None:
        return np.ones(len(reference.answers), dtype=np.bool_)
    second, first = np.sort(reference.answers, axis=1)[:, -2:].T
    found: NDArray[np.bool_] = first - second >= _DECIDED_LEAD
    return found


def _check(loss: PrecisionLoss, target: LowerPrecision) -> None:
    name, failure = target.precision, _FAILURES[target.precision]
    max_drop, min_agreement_percent = target.limits
    if loss.drop_percent is None and loss.agreement_percent < min_agreement_percent:
        raise failure(
            f"{name} and float agree in {loss.agreement_percent:.2f} % of first classes, "
            f"the limit is {min_agreement_percent:g} %"
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

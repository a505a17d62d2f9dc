"""Accuracy, error, calibration and confusion of predictions, computed from probabilities.

Everything is computed in float64, whatever the input's precision. The first class of a row is the most
probable one, and the lowest index wins a tie, as in `contract.predictions.top_k`.

Shapes: N pictures, C classes. Probabilities are float, (N, C), with rows that sum to 1; indexes are
the true classes, int64, (N,).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.comparison import FLOOR, wilson_interval
from training.errors import PicturesMissing
from training.evaluation.classes import ClassMeasure, average, class_measures

Floats = NDArray[np.floating]
Indexes = NDArray[np.int64]

N_BINS: Final = 15  # of the ECE and its diagram, as in Guo et al. 2017, arXiv:1706.04599

THRESHOLDS: Final = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)  # minimum probabilities in the report


def classification_error(probabilities: Floats, indexes: Indexes) -> float:
    """Returns the share of rows whose first class is not the true one, 0 to 1."""
    rows, truth = _checked(probabilities, indexes)
    return float((rows.argmax(axis=1) != truth).mean())


def mean_squared_error(probabilities: Floats, indexes: Indexes) -> float:
    """Returns the squared distance to the one-hot targets, averaged over the rows, 0 to 2.

    Summed over the classes, this is the original Brier score (Brier 1950) for any number of classes.
    """
    rows, truth = _checked(probabilities, indexes)
    residuals = rows.copy()
    residuals[np.arange(len(truth)), truth] -= 1.0
    return float((residuals**2).sum(axis=1).mean())


def cross_entropy(probabilities: Floats, indexes: Indexes) -> float:
    """Returns the mean of -log p(true class), natural logarithm, 0 to 87.3.

    With one-hot targets this is the negative log-likelihood (NLL). No probability counts as less than
    `FLOOR`.
    """
    rows, truth = _checked(probabilities, indexes)
    true_class = rows[np.arange(len(truth)), truth]  # (N,)
    return float(-np.log(np.maximum(true_class, FLOOR)).mean())


def top_k_accuracy(probabilities: Floats, indexes: Indexes, k: int) -> float:
    """Returns the share of rows with the true class among the k most probable, 0 to 1."""
    rows, truth = _checked(probabilities, indexes)
    # A stable sort of negated values: the lowest index wins a tie.
    order = np.argsort(-rows, axis=1, kind="stable")[:, :k]  # (N, k)
    return float((order == truth[:, None]).any(axis=1).mean())


@dataclass(frozen=True, slots=True)
class Bin:
    """The pictures whose largest probability lies in one interval.

    Attributes:
        lower, upper: the interval, open below and closed above.
        n: pictures.
        mean_probability: of their first classes, 0 to 1; None if n is 0.
        accuracy: share of correct first classes, 0 to 1; None if n is 0.
    """

    lower: float
    upper: float
    n: int
    mean_probability: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Reliability:
    """How closely accuracy follows probability.

    Attributes:
        ece_percent: expected calibration error, 0 to 100: |accuracy - mean probability| of each bin,
            averaged over the pictures.
        bins: of equal width over 0 to 1, ascending.
    """

    ece_percent: float
    bins: tuple[Bin, ...]


def reliability(probabilities: Floats, indexes: Indexes, n_bins: int = N_BINS) -> Reliability:
    """Compares probability and accuracy bin by bin (Guo et al. 2017, arXiv:1706.04599)."""
    rows, truth = _checked(probabilities, indexes)
    first = rows.max(axis=1)  # (N,)
    hits = rows.argmax(axis=1) == truth
    # Bins are closed above, so 0.2 of 5 bins belongs to the first; the clip takes in 0 and 1 + 1e-16.
    places = np.clip(np.ceil(first * n_bins).astype(int) - 1, 0, n_bins - 1)  # (N,)

    counts = np.bincount(places, minlength=n_bins)  # (n_bins,)
    sums = np.bincount(places, weights=first, minlength=n_bins)
    right = np.bincount(places, weights=hits, minlength=n_bins)

    bins = tuple(
        Bin(
            lower=i / n_bins,
            upper=(i + 1) / n_bins,
            n=int(n),
            mean_probability=float(sums[i] / n) if n else None,
            accuracy=float(right[i] / n) if n else None,
        )
        for i, n in enumerate(counts)
    )
    # sum(n_bin / N * |sums / n_bin - right / n_bin|): the size of the bin cancels.
    return Reliability(100 * float(np.abs(sums - right).sum() / len(truth)), bins)


def confusion_matrix(probabilities: Floats, indexes: Indexes) -> Indexes:
    """Returns int64, shape (C, C): how often each true class (row) got each first class (column)."""
    rows, truth = _checked(probabilities, indexes)
    n_classes = rows.shape[1]
    # One number for each cell: row * C + column.
    cells = np.bincount(truth * n_classes + rows.argmax(axis=1), minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes).astype(np.int64)


@dataclass(frozen=True, slots=True)
class ThresholdRow:
    """The effect of accepting only predictions of a minimum probability.

    Attributes:
        min_probability: of the first class, 0 to 1.
        answered_percent: pictures that reach it, 0 to 100.
        right_percent: share of those whose first class is correct; None if there are none.
    """

    min_probability: float
    answered_percent: float
    right_percent: float | None


def at_thresholds(
    probabilities: Floats, indexes: Indexes, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[ThresholdRow, ...]:
    """Returns a row for each minimum probability, 0 to 1."""
    rows, truth = _checked(probabilities, indexes)
    hits = rows.argmax(axis=1) == truth  # (N,)
    taken = [rows.max(axis=1) >= threshold for threshold in thresholds]
    return tuple(
        ThresholdRow(
            threshold,
            100 * float(reached.mean()),
            100 * float(hits[reached].mean()) if reached.any() else None,
        )
        for threshold, reached in zip(thresholds, taken, strict=True)
    )


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """All measures of one split.

    Attributes:
        split: name of the pictures, such as "test".
        n: pictures.
        top1_percent, top5_percent: accuracy, 0 to 100.
        top1_interval_percent: 95% Wilson interval of top-1.
        classification_error: 0 to 1.
        mean_squared_error: 0 to 2, the Brier score.
        cross_entropy: 0 to 87.3, the negative log-likelihood.
        confusion: int64, shape (C, C), true classes in rows.
        classes: C measures, by class index.
        macro, weighted: averages over the classes that have pictures.
    """

    split: str
    n: int
    top1_percent: float
    top1_interval_percent: tuple[float, float]
    top5_percent: float
    classification_error: float
    mean_squared_error: float
    cross_entropy: float
    reliability: Reliability
    confusion: Indexes
    classes: tuple[ClassMeasure, ...]
    macro: ClassMeasure
    weighted: ClassMeasure

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "confusion": self.confusion.tolist()}


def evaluate(probabilities: Floats, indexes: Indexes, split: str) -> Evaluation:
    """Measures the predictions for one split.

    Raises:
        PicturesMissing: there are no rows.
        ValueError: the shapes do not fit, a class index is outside 0 to C - 1, or a probability is not
            finite.
    """
    confusion = confusion_matrix(probabilities, indexes)
    classes = class_measures(confusion)
    n = len(indexes)
    hits = int(np.trace(confusion))
    low, high = wilson_interval(hits, n)

    return Evaluation(
        split=split,
        n=n,
        top1_percent=100 * hits / n,
        top1_interval_percent=(100 * low, 100 * high),
        top5_percent=100 * top_k_accuracy(probabilities, indexes, 5),
        classification_error=classification_error(probabilities, indexes),
        mean_squared_error=mean_squared_error(probabilities, indexes),
        cross_entropy=cross_entropy(probabilities, indexes),
        reliability=reliability(probabilities, indexes),
        confusion=confusion,
        classes=classes,
        macro=average(classes, weighted=False),
        weighted=average(classes, weighted=True),
    )


def _checked(probabilities: Floats, indexes: Indexes) -> tuple[NDArray[np.float64], Indexes]:
    rows = np.asarray(probabilities, dtype=np.float64)
    truth = np.asarray(indexes, dtype=np.int64)

    if not len(truth):
        raise PicturesMissing("there are no pictures to measure on")
    if rows.ndim != 2 or truth.shape != (len(rows),):
        raise ValueError(f"shapes {rows.shape} and {truth.shape} are not (N, C) and (N,)")
    if truth.min() < 0 or truth.max() >= rows.shape[1]:
        raise ValueError(f"a class index is not in 0..{rows.shape[1] - 1}")
    if not np.isfinite(rows).all():
        raise ValueError("a probability is not finite")

    return rows, truth

"""How good answers are: errors, calibration and what is mistaken for what, from probabilities.

Everything is computed in float64 whatever the input's precision. The first class of a row is the
most probable one, and of equal ones that of the lowest index, as in `contract.predictions.top_k`.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from training.errors import PicturesMissing
from training.evaluation.classes import ClassMeasure, average, class_measures

Floats = NDArray[np.floating]
Indexes = NDArray[np.int64]

N_BINS: Final = 15
"""Of the reliability diagram and the ECE, as in Guo et al. 2017, arXiv:1706.04599."""

FLOOR: Final = float(np.finfo(np.float32).tiny)
"""Probabilities are raised to it before a logarithm: the smallest normal float32, so that nothing a
graph can answer but 0 changes, and one picture costs 87.3 at most."""

THRESHOLDS: Final = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Least probabilities at which a report says what they would bring."""

Z95: Final = 1.959963984540054  # quantile of the normal distribution, 97.5 %


def classification_error(probabilities: Floats, indexes: Indexes) -> float:
    """Returns the share of rows whose first class is not the true one, 0..1.

    Args:
        probabilities: float, shape (N, C), rows summing to 1.
        indexes: int, shape (N,): the true classes.
    """
    rows, truth = _checked(probabilities, indexes)
    return float((rows.argmax(axis=1) != truth).mean())


def mean_squared_error(probabilities: Floats, indexes: Indexes) -> float:
    """Returns the squared distance from the one-hot targets, 0..2.

    The sum over the classes, averaged over the rows, which is also the Brier score in its original
    form (Brier 1950) for any number of classes.

    Args:
        probabilities: float, shape (N, C), rows summing to 1.
        indexes: int, shape (N,): the true classes.
    """
    rows, truth = _checked(probabilities, indexes)
    residuals = rows.copy()
    residuals[np.arange(len(truth)), truth] -= 1.0
    return float((residuals**2).sum(axis=1).mean())


def cross_entropy(probabilities: Floats, indexes: Indexes) -> float:
    """Returns the mean of -log p(true class), natural logarithm, 0..87.3.

    For one-hot targets the cross-entropy is the negative log-likelihood (NLL). Probabilities are
    raised to `FLOOR` first.

    Args:
        probabilities: float, shape (N, C), rows summing to 1.
        indexes: int, shape (N,): the true classes.
    """
    rows, truth = _checked(probabilities, indexes)
    true_class = rows[np.arange(len(truth)), truth]  # (N,)
    return float(-np.log(np.maximum(true_class, FLOOR)).mean())


def top_k_accuracy(probabilities: Floats, indexes: Indexes, k: int) -> float:
    """Returns the share of rows whose k most probable classes hold the true one, 0..1.

    Args:
        probabilities: float, shape (N, C), rows summing to 1.
        indexes: int, shape (N,): the true classes.
        k: 1 or more; values above C mean C.
    """
    rows, truth = _checked(probabilities, indexes)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :k]  # (N, k)
    return float((order == truth[:, None]).any(axis=1).mean())


@dataclass(frozen=True, slots=True)
class Bin:
    """The pictures whose largest probability lies in one interval.

    Attributes:
        lower, upper: the interval, open below and closed above.
        n: pictures.
        mean_probability: of their first classes, 0..1; None where there are no pictures.
        accuracy: share of them whose first class is right, 0..1; None likewise.
    """

    lower: float
    upper: float
    n: int
    mean_probability: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Reliability:
    """Whether first classes are right as often as their probabilities say.

    Attributes:
        ece_percent: expected calibration error, 0..100: the distance of accuracy and mean
            probability in a bin, averaged over the pictures.
        bins: of equal width over 0..1, ascending.
    """

    ece_percent: float
    bins: tuple[Bin, ...]


def reliability(probabilities: Floats, indexes: Indexes, n_bins: int = N_BINS) -> Reliability:
    """Compares probability and accuracy, bin by bin (Guo et al. 2017, arXiv:1706.04599).

    Args:
        probabilities: float, shape (N, C), rows summing to 1.
        indexes: int, shape (N,): the true classes.
        n_bins: intervals of equal width.
    """
    rows, truth = _checked(probabilities, indexes)
    first = rows.max(axis=1)  # (N,)
    hits = rows.argmax(axis=1) == truth
    places = np.clip(np.ceil(first * n_bins).astype(int) - 1, 0, n_bins - 1)
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
    return Reliability(100 * float(np.abs(sums - right).sum() / len(truth)), bins)


def confusion_matrix(probabilities: Floats, indexes: Indexes) -> Indexes:
    """Counts which class was answered for which.

    Args:
        probabilities: float, shape (N, C), rows summing to 1.
        indexes: int, shape (N,): the true classes.

    Returns:
        int64, shape (C, C): true classes in rows, first classes in columns.
    """
    rows, truth = _checked(probabilities, indexes)
    n_classes = rows.shape[1]
    cells = np.bincount(truth * n_classes + rows.argmax(axis=1), minlength=n_classes**2)
    return cells.reshape(n_classes, n_classes).astype(np.int64)


@dataclass(frozen=True, slots=True)
class ThresholdRow:
    """What taking only answers of a least probability does.

    Attributes:
        min_probability: of the first class, 0..1.
        answered_percent: pictures that reach it, 0..100.
        right_percent: of those, the share whose first class is right; None where there are none.
    """

    min_probability: float
    answered_percent: float
    right_percent: float | None


def at_thresholds(
    probabilities: Floats, indexes: Indexes, thresholds: Sequence[float] = THRESHOLDS
) -> tuple[ThresholdRow, ...]:
    """Returns one row a threshold.

    Args:
        probabilities: float, shape (N, C), rows summing to 1.
        indexes: int, shape (N,): the true classes.
        thresholds: least probabilities, 0..1.
    """
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


def wilson_interval(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Returns bounds of a proportion, 0..1 (Wilson 1927; Brown, Cai and DasGupta 2001).

    Unlike the usual +-1.96 standard errors, it is no wider than 0..1 and not empty where every
    picture, or none, was right.

    Args:
        hits: 0..n.
        n: 1 or more.
        z: normal quantile; the default gives 95 %.
    """
    share = hits / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Everything measured on one split.

    Attributes:
        split: what the pictures are, such as "test".
        n: pictures.
        top1_percent: first class right, 0..100.
        top1_interval_percent: its 95 % Wilson interval.
        top5_percent: the true class among the first five, 0..100.
        classification_error: 0..1.
        mean_squared_error: 0..2, the Brier score.
        cross_entropy: 0..87.3, the negative log-likelihood.
        reliability: ECE and its bins.
        confusion: int64, shape (C, C), true classes in rows.
        classes: C measures, by index.
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
        """Returns everything as plain dicts, lists and numbers for `json.dumps`."""
        return {**asdict(self), "confusion": self.confusion.tolist()}


def evaluate(probabilities: Floats, indexes: Indexes, split: str) -> Evaluation:
    """Measures the answers to one split.

    Args:
        probabilities: float, shape (N, C), rows summing to 1.
        indexes: int, shape (N,): the true classes.
        split: what the pictures are.

    Raises:
        PicturesMissing: there are none.
        ValueError: the shapes do not fit, a class index is not in 0..C-1, or a probability is not
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

"""Precision, recall and F1 of each class, from a confusion matrix.

Shapes: C classes. A confusion matrix is int64, shape (C, C): true classes in rows, predicted ones in
columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ClassMeasure:
    """Measures of one class, or an average over classes; each 0 to 1, and 0 / 0 counts as 0.

    Attributes:
        precision: correct predictions of the class / all predictions of it.
        recall: correct predictions of the class / pictures of it.
        f1: harmonic mean of precision and recall.
        support: pictures of the class.
    """

    precision: float
    recall: float
    f1: float
    support: int


def class_measures(confusion: NDArray[np.int64]) -> tuple[ClassMeasure, ...]:
    """Returns precision, recall, F1 and support of each class, by class index."""
    hits = np.diag(confusion).astype(np.float64)  # (C,)
    support = confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)

    precision = _ratio(hits, predicted)
    recall = _ratio(hits, support)
    f1 = _ratio(2 * hits, support + predicted)  # = 2PR / (P + R), without its 0 / 0

    columns = zip(precision, recall, f1, support, strict=True)
    return tuple(ClassMeasure(float(p), float(r), float(f), int(n)) for p, r, f, n in columns)


def average(classes: tuple[ClassMeasure, ...], *, weighted: bool) -> ClassMeasure:
    """Averages over the classes that have pictures.

    Args:
        classes: at least one of them has pictures.
        weighted: by support; otherwise every class counts the same ("macro").
    """
    present = [measure for measure in classes if measure.support]
    weights = [measure.support if weighted else 1 for measure in present]

    def mean(name: str) -> float:
        return float(np.average([getattr(m, name) for m in present], weights=weights))

    support = sum(measure.support for measure in present)
    return ClassMeasure(mean("precision"), mean("recall"), mean("f1"), support)


def most_confused(confusion: NDArray[np.int64], n: int = 20) -> list[tuple[int, int, int]]:
    """Returns the n most frequent mistakes as (true class, predicted class, pictures); ties by index."""
    wrong = confusion - np.diag(np.diag(confusion))
    cells = np.argwhere(wrong)  # (mistakes, 2), by class index
    order = np.argsort(-wrong[cells[:, 0], cells[:, 1]], kind="stable")[:n]
    return [(int(true), int(other), int(wrong[true, other])) for true, other in cells[order]]


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    zeros = np.zeros(len(numerator))
    ratios: NDArray[np.float64] = np.divide(
        numerator, denominator, out=zeros, where=denominator > 0
    )
    return ratios

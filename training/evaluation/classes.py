"""How well each class is told from the others, from a confusion matrix.

Shapes: C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ClassMeasure:
    """How well one class, or an average over classes, is told from the others; each 0..1.

    A ratio of 0 to 0 counts as 0: the precision of a class that was never answered, the recall of
    one without pictures.

    Attributes:
        precision: of the pictures answered with it, the share that shows it.
        recall: of the pictures that show it, the share answered with it.
        f1: harmonic mean of the two.
        support: pictures that show it.
    """

    precision: float
    recall: float
    f1: float
    support: int


def class_measures(confusion: NDArray[np.int64]) -> tuple[ClassMeasure, ...]:
    """Returns precision, recall, F1 and support of each class, by index.

    Args:
        confusion: int, shape (C, C), true classes in rows.
    """
    hits = np.diag(confusion).astype(np.float64)  # (C,)
    support = confusion.sum(axis=1)
    answered = confusion.sum(axis=0)
    precision = _ratio(hits, answered)
    recall = _ratio(hits, support)
    f1 = _ratio(2 * hits, support + answered)
    columns = zip(precision, recall, f1, support, strict=True)
    return tuple(ClassMeasure(float(p), float(r), float(f), int(n)) for p, r, f, n in columns)


def average(classes: tuple[ClassMeasure, ...], *, weighted: bool) -> ClassMeasure:
    """Averages over the classes that have pictures.

    Args:
        classes: at least one with pictures.
        weighted: by support; otherwise every class counts the same ("macro").
    """
    shown = [measure for measure in classes if measure.support]
    weights = [measure.support if weighted else 1 for measure in shown]

    def mean(name: str) -> float:
        return float(np.average([getattr(m, name) for m in shown], weights=weights))

    support = sum(measure.support for measure in shown)
    return ClassMeasure(mean("precision"), mean("recall"), mean("f1"), support)


def most_confused(confusion: NDArray[np.int64], n: int = 20) -> list[tuple[int, int, int]]:
    """Returns (true, answered, pictures) of the most frequent mistakes, equal ones by class index.

    Args:
        confusion: int, shape (C, C), true classes in rows.
        n: how many at most.
    """
    wrong = confusion - np.diag(np.diag(confusion))
    places = np.argwhere(wrong)
    order = np.argsort(-wrong[places[:, 0], places[:, 1]], kind="stable")[:n]
    return [(int(true), int(other), int(wrong[true, other])) for true, other in places[order]]


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    zeros = np.zeros(len(numerator))
    ratios: NDArray[np.float64] = np.divide(
        numerator, denominator, out=zeros, where=denominator > 0
    )
    return ratios

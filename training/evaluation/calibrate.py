"""Makes probabilities mean what they say: temperature, prediction sets, "unlike anything seen".

All of it is fitted on validation pictures and measured on test pictures. The temperature is fitted
on the network's logits and goes into the graph, which answers softmax(logits / T) and, apart from
that, the undivided logits. Everything else is fitted on the answers of the published graph.

Shapes: N pictures, C classes. Logits are before the division by the temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.manifest import Calibration, ConformalSet, OutOfDistribution
from contract.predictions import softmax
from training.errors import PicturesMissing
from training.evaluation.measures import cross_entropy, reliability

Logits = NDArray[np.float32]
Indexes = NDArray[np.int64]
Labelled = tuple[Logits, Indexes]
"""Logits, float32, shape (N, C), and class indexes, int64, shape (N,)."""

MIN_TEMPERATURE: Final = 0.05
MAX_TEMPERATURE: Final = 20.0
_HALVINGS: Final = 50  # of log(20 / 0.05) = 6, which leaves 1e-14

COVERAGES_PERCENT: Final = (90, 95, 99)
UNLIKE_PERCENT: Final = 5
"""Of pictures like the validation ones that are wrongly called unlike anything seen, at most."""


def energy(logits: Logits, temperature: float) -> NDArray[np.float64]:
    """Returns how much pictures are like those seen in training: T * logsumexp(logits / T).

    The negative free energy of Liu et al. 2020, arXiv:2010.03759. A flat row scores low.

    Args:
        logits: float32, shape (N, C).
        temperature: T, of the calibration.

    Returns:
        float64, shape (N,).
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature  # (N, C)
    highest = scaled.max(axis=1)
    sums = np.exp(scaled - highest[:, None]).sum(axis=1)
    energies: NDArray[np.float64] = temperature * (highest + np.log(sums))
    return energies  # (N,)


def fit_temperature(logits: Logits, indexes: Indexes) -> float:
    """Returns the temperature under which the true classes are most probable.

    The cross-entropy is convex in 1/T, so its one minimum is where the slope changes sign, found by
    halving log T (Guo et al. 2017, arXiv:1706.04599). Where every picture is answered rightly that
    minimum lies at T = 0 and would claim certainty, so the targets are those of Platt 1999: the
    true class gets (N + 1) / (N + 2) rather than 1 and the others share the rest.

    Args:
        logits: finite, of pictures that were not trained on.
        indexes: their classes.

    Returns:
        MIN_TEMPERATURE..MAX_TEMPERATURE; 1 where no other lowers the cross-entropy.

    Raises:
        PicturesMissing: there are none.
        ValueError: the shapes do not fit, or a logit is not finite.
    """
    before = _cross_entropy(logits, indexes, 1.0)
    rows = np.asarray(logits, dtype=np.float64)
    expected = _target_logits(rows, indexes)  # (N,)

    def slope(log_temperature: float) -> float:
        """The derivative by 1/T: mean logit under the answer less mean logit under the targets."""
        answer = _softmax(rows / math.exp(log_temperature))
        return float(((answer * rows).sum(axis=1) - expected).mean())

    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # A positive slope by 1/T asks for a higher temperature.
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    temperature = math.exp((low + high) / 2)
    return temperature if _cross_entropy(rows, indexes, temperature) < before else 1.0


def conformal(
    validation: Labelled,
    test: Labelled,
    temperature: float = 1.0,
    coverages_percent: Sequence[int] = COVERAGES_PERCENT,
) -> tuple[ConformalSet, ...]:
    """Fits split-conformal prediction sets and measures them.

    The nonconformity of a picture is 1 - p(true class) (LAC: Sadinle et al. 2019, arXiv:1609.00451).
    The ceil((N + 1) * coverage)-th smallest of them bounds the set, so that sets of new pictures
    like the N validation ones hold the true class with the coverage asked or a little more. Where
    N is too small for that (below 99 for 99 %), every class is in the set: a threshold of 0.

    Args:
        validation: pictures to fit on.
        test: pictures to measure on.
        temperature: of the probabilities.
        coverages_percent: whole percents, 1..99.
    """
    fitted, indexes = softmax(validation[0], temperature), validation[1]
    true_class = np.sort(fitted[np.arange(len(indexes)), indexes])  # (N,), ascending
    sets = []
    for coverage in coverages_percent:
        rank = -(-(len(indexes) + 1) * coverage // 100)  # ceil in whole numbers: no rounding
        threshold = float(true_class[-rank]) if rank <= len(true_class) else 0.0
        members = prediction_sets(softmax(test[0], temperature), threshold)  # (N, C)
        sets.append(
            ConformalSet(
                coverage_percent=coverage,
                min_probability=threshold,
                achieved_percent=_percent(members[np.arange(len(test[1])), test[1]].mean()),
                mean_set_size=round(float(members.sum(axis=1).mean()), 3),
            )
        )
    return tuple(sets)


def prediction_sets(
    probabilities: NDArray[np.float32], min_probability: float
) -> NDArray[np.bool_]:
    """Says which classes are in the set of each picture.

    Args:
        probabilities: float32, shape (N, C).
        min_probability: a class of this probability is in the set, and so is the first class.

    Returns:
        bool, shape (N, C), at least one True in each row.
    """
    members = probabilities >= min_probability
    members[np.arange(len(members)), probabilities.argmax(axis=1)] = True
    return members


def unlike(validation: Logits, test: Logits, temperature: float = 1.0) -> OutOfDistribution:
    """Fits the energy below which a picture is called unlike anything seen.

    It is the validation energy of rank UNLIKE_PERCENT of N + 1, counted from below, so that of new
    pictures like the validation ones at most UNLIKE_PERCENT are called so wrongly. The lowest one
    is taken where N < 19 is too few for that.

    Args:
        validation: logits to fit on.
        test: logits to measure on.
        temperature: of the calibration.
    """
    ranked = np.sort(energy(validation, temperature))  # (N,), ascending
    rank = max(1, (len(ranked) + 1) * UNLIKE_PERCENT // 100)
    threshold = float(ranked[rank - 1])
    flagged = energy(test, temperature) < threshold
    return OutOfDistribution(threshold=threshold, flagged_percent=_percent(flagged.mean()))


def is_unlike(
    logits: Logits, rule: OutOfDistribution, temperature: float = 1.0
) -> NDArray[np.bool_]:
    """Says of each picture whether it is unlike anything seen.

    Args:
        logits: float32, shape (N, C).
        rule: the manifest's.
        temperature: of the same calibration.

    Returns:
        bool, shape (N,).
    """
    return energy(logits, temperature) < rule.threshold


def calibrate(validation: Labelled, test: Labelled, temperature: float) -> Calibration:
    """Makes the manifest's calibration of a published graph.

    Args:
        validation: the graph's logits to fit on, with the classes.
        test: the same to measure on.
        temperature: the one in the graph, from `fit_temperature` on the network's logits.

    Raises:
        PicturesMissing: a split is empty.
        ValueError: the shapes do not fit, or a logit is not finite.
    """
    for logits, indexes in (validation, test):
        _cross_entropy(logits, indexes, temperature)  # refuses what cannot be measured
    after = reliability(softmax(test[0], temperature), test[1])
    before = reliability(softmax(test[0]), test[1])
    return Calibration(
        temperature=temperature,
        ece_percent=round(after.ece_percent, 3),
        ece_before_percent=round(before.ece_percent, 3),
        n_fitted=len(validation[1]),
        conformal=conformal(validation, test, temperature),
        unlike=unlike(validation[0], test[0], temperature),
    )


def _percent(share: float) -> float:
    return round(100 * float(share), 3)


def _target_logits(rows: NDArray[np.float64], indexes: Indexes) -> NDArray[np.float64]:
    """Returns each row's mean logit, (N,), under Platt's targets."""
    n, n_classes = rows.shape
    true_class = rows[np.arange(n), indexes]
    if n_classes == 1:
        return true_class
    others = (rows.sum(axis=1) - true_class) / (n_classes - 1)
    targets: NDArray[np.float64] = ((n + 1) * true_class + others) / (n + 2)
    return targets


def _softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """In float64: `contract.predictions.softmax` rounds to float32, too coarse for a slope near 0."""
    raised = np.exp(rows - rows.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return probabilities


def _cross_entropy(logits: NDArray[np.floating], indexes: Indexes, temperature: float) -> float:
    if not len(indexes):
        raise PicturesMissing("there are no pictures to calibrate with")
    if not np.isfinite(logits).all():
        raise ValueError("a logit is not finite")
    return cross_entropy(_softmax(np.asarray(logits, dtype=np.float64) / temperature), indexes)

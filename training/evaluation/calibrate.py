"""Calibration: temperature scaling, conformal prediction sets, and out-of-distribution detection.

Everything is fitted on validation pictures and measured on test pictures. The temperature T is fitted
on the network's logits and becomes part of the graph, which returns softmax(logits / T) and the
logits before the division. Everything else is fitted on the outputs of the published graph.

Shapes: N pictures, C classes. Logits are float32, (N, C), before the division by T; class indexes are
int64, (N,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.manifest import Calibration, ConformalSet, EnergyRule
from contract.predictions import softmax
from training.errors import PicturesMissing
from training.evaluation.measures import cross_entropy, reliability

Logits = NDArray[np.float32]
Indexes = NDArray[np.int64]
Labelled = tuple[Logits, Indexes]  # float32 (N, C) and int64 (N,)

MIN_TEMPERATURE: Final = 0.05
MAX_TEMPERATURE: Final = 20.0
_BISECTIONS: Final = 50  # log(20 / 0.05) is 6; halved 50 times, 1e-14 remains

COVERAGES_PERCENT: Final = (90, 95, 99)
UNLIKE_PERCENT: Final = 5  # of ordinary pictures that may be flagged by mistake


def energy(logits: Logits, temperature: float) -> NDArray[np.float64]:
    """Returns the negative free energy, T * logsumexp(logits / T), float64, shape (N,).

    It is high for pictures like those seen in training (Liu et al. 2020, arXiv:2010.03759).
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature  # (N, C)
    # Subtract the maximum first, so that exp() cannot overflow.
    highest = scaled.max(axis=1)
    sums = np.exp(scaled - highest[:, None]).sum(axis=1)  # (N,)
    energies: NDArray[np.float64] = temperature * (highest + np.log(sums))
    return energies  # (N,)


def nll_at(logits: NDArray[np.floating], indexes: Indexes, temperature: float) -> float:
    """Returns the mean negative log-likelihood under softmax(logits / T), in float64.

    Raises:
        PicturesMissing: N is 0.
        ValueError: the shapes do not fit, or a logit is not finite.
    """
    if not len(indexes):
        raise PicturesMissing("there are no pictures to calibrate with")
    if not np.isfinite(logits).all():
        raise ValueError("a logit is not finite")
    return cross_entropy(_softmax(np.asarray(logits, dtype=np.float64) / temperature), indexes)


def fit_temperature(logits: Logits, indexes: Indexes, *, bisections: int = _BISECTIONS) -> float:
    """Returns the T that minimises the cross-entropy of softmax(logits / T) (arXiv:1706.04599).

    T is MIN_TEMPERATURE to MAX_TEMPERATURE, or 1 if no other value lowers the cross-entropy. The
    pictures must not be those the network was trained on.

    Raises:
        PicturesMissing: N is 0.
        ValueError: the shapes do not fit, or a logit is not finite.
    """
    before = nll_at(logits, indexes, 1.0)
    rows = np.asarray(logits, dtype=np.float64)
    expected = _target_logits(rows, indexes)  # (N,)

    def slope(log_temperature: float) -> float:
        # d(cross-entropy) / d(1/T): the mean logit under the softmax minus that under the targets.
        answer = _softmax(rows / math.exp(log_temperature))  # (N, C)
        return float(((answer * rows).sum(axis=1) - expected).mean())

    # The cross-entropy is convex in 1/T, so its only minimum is where the slope changes sign.
    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    for _ in range(bisections):
        middle = (low + high) / 2
        # A positive slope in 1/T means that T must rise.
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)

    temperature = math.exp((low + high) / 2)
    return temperature if nll_at(rows, indexes, temperature) < before else 1.0


def conformal(
    validation: Labelled,
    test: Labelled,
    temperature: float = 1.0,
    coverages_percent: Sequence[int] = COVERAGES_PERCENT,
) -> tuple[ConformalSet, ...]:
    """Fits split-conformal prediction sets on validation pictures and measures them on test pictures.

    Args:
        validation: N pictures to fit on.
        test: pictures to measure on.
        temperature: T of the probabilities.
        coverages_percent: whole percents, 1 to 99.
    """
    # The nonconformity score is 1 - p(true class) (LAC: Sadinle et al. 2019, arXiv:1609.00451). With the
    # ceil((N + 1) * coverage)-th smallest score as the threshold, sets of new pictures hold the true
    # class at least as often as `coverage` says.
    fitted, indexes = softmax(validation[0], temperature), validation[1]
    true_class = np.sort(fitted[np.arange(len(indexes)), indexes])  # (N,), ascending

    sets = []
    for coverage in coverages_percent:
        rank = -(-(len(indexes) + 1) * coverage // 100)  # ceil, exact in integers
        # If N is too small (below 99 for 99%), the threshold is 0 and every class is in the set.
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
    """Returns which classes are in the prediction set of each picture, bool, shape (N, C).

    A class is in the set from `min_probability` up. The most probable class always is.
    """
    members = probabilities >= min_probability
    members[np.arange(len(members)), probabilities.argmax(axis=1)] = True
    return members


def fit_out_of_distribution(
    validation: Logits, test: Logits, temperature: float = 1.0
) -> EnergyRule:
    """Fits the energy below which a picture counts as unlike the training data.

    At most UNLIKE_PERCENT of new pictures like the validation ones fall below it by mistake.
    """
    ranked = np.sort(energy(validation, temperature))  # (N,), ascending
    # N < 19 is too few for a rank of 5%; the lowest energy is the threshold then.
    rank = max(1, (len(ranked) + 1) * UNLIKE_PERCENT // 100)
    threshold = float(ranked[rank - 1])
    flagged = energy(test, temperature) < threshold
    return EnergyRule(threshold=threshold, flagged_percent=_percent(flagged.mean()))


def is_out_of_distribution(
    logits: Logits, rule: EnergyRule, temperature: float = 1.0
) -> NDArray[np.bool_]:
    """Returns which pictures are unlike the training data, bool, shape (N,)."""
    return energy(logits, temperature) < rule.threshold


def calibrate(validation: Labelled, test: Labelled, temperature: float) -> Calibration:
    """Returns the manifest's calibration of a published graph, from its logits.

    Args:
        validation: pictures to fit on.
        test: pictures to measure on.
        temperature: T in the graph, from `fit_temperature` on the network's logits.

    Raises:
        PicturesMissing: a split is empty.
        ValueError: the shapes do not fit, or a logit is not finite.
    """
    for logits, indexes in (validation, test):
        nll_at(logits, indexes, temperature)  # only for its checks

    after = reliability(softmax(test[0], temperature), test[1])
    before = reliability(softmax(test[0]), test[1])

    return Calibration(
        temperature=temperature,
        ece_percent=round(after.ece_percent, 3),
        ece_before_percent=round(before.ece_percent, 3),
        n_fitted=len(validation[1]),
        conformal=conformal(validation, test, temperature),
        unlike=fit_out_of_distribution(validation[0], test[0], temperature),
    )


def _percent(share: float) -> float:
    return round(100 * float(share), 3)


def _target_logits(rows: NDArray[np.float64], indexes: Indexes) -> NDArray[np.float64]:
    # Returns each row's mean logit, (N,), under Platt's targets (1999): (N + 1) / (N + 2) for the true
    # class, with the rest shared by the others. With one-hot targets and every picture classified
    # correctly, the best temperature would be 0, which claims certainty.
    n, n_classes = rows.shape
    true_class = rows[np.arange(n), indexes]
    if n_classes == 1:
        return true_class

    others = (rows.sum(axis=1) - true_class) / (n_classes - 1)
    targets: NDArray[np.float64] = ((n + 1) * true_class + others) / (n + 2)
    return targets


def _softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    # In float64: `contract.predictions.softmax` rounds to float32, too coarse for a slope near 0.
    raised = np.exp(rows - rows.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return probabilities

import math

import numpy as np
import pytest

from training.learning.history import merit
from training.learning.validation import ValidationScore, score_validation

# 20 pictures of two classes. The first network gets 17 right and is as sure as that. The second gets 19
# right, but label smoothing kept its logits small.
INDEXES = np.array([0, 1] * 10)


def logits(n_right, size):
    signs = np.where(np.arange(20) < n_right, 1, -1) * np.where(INDEXES == 0, 1, -1)
    return np.stack([size * signs, -size * signs], axis=1).astype(np.float32)


WORSE = score_validation(logits(17, 0.9), INDEXES)
SMOOTHED = score_validation(logits(19, 0.15), INDEXES)


def test_score_of_a_validation():
    assert SMOOTHED.top1 == 0.95
    assert SMOOTHED.nll == pytest.approx(-0.95 * math.log(0.57444) - 0.05 * math.log(0.42556), 1e-4)
    assert SMOOTHED.temperature < 0.2
    assert SMOOTHED.nll_calibrated < SMOOTHED.nll


def test_label_smoothing_does_not_spoil_the_choice_of_the_epoch():
    assert WORSE.nll < SMOOTHED.nll
    assert merit(SMOOTHED.top1, SMOOTHED.nll_calibrated, "nll") > merit(
        WORSE.top1, WORSE.nll_calibrated, "nll"
    )


def test_score_of_logits_that_are_not_finite_is_not_finite():
    broken = logits(19, 1)
    broken[3, 0] = np.nan

    assert math.isnan(score_validation(broken, INDEXES).nll)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("nll", "lowest validation NLL 0.2500 at its best temperature 0.80; top-1 97.60%"),
        ("top1", "highest validation top-1 97.60%; NLL 0.2500 at its best temperature 0.80"),
    ],
)
def test_reason_says_by_what_the_epoch_was_chosen(metric, expected):
    assert ValidationScore(0.976, 0.3, 0.25, 0.8).reason(metric) == expected

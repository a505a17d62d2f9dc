import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.errors import PicturesMissing
from training.evaluation import measures
from training.evaluation.scorer import accuracy

DOG, CAT = 0, 1
TRUTH = np.array([DOG, CAT, DOG])
NETWORK_1 = np.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6]])
NETWORK_2 = np.array([[0.6, 0.4], [0.3, 0.7], [0.1, 0.9]])

MEASURES = {
    "classification_error": measures.classification_error,
    "mean_squared_error": measures.mean_squared_error,
    "cross_entropy": measures.cross_entropy,
}


def rows(seed: int, n: int = 40, n_classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(n_classes, 0.5), n).astype(np.float32)
    return probabilities, rng.integers(0, n_classes, n)


@pytest.mark.parametrize(
    ("name", "first", "second", "tolerance"),
    [
        ("classification_error", 1 / 3, 1 / 3, 1e-12),
        ("mean_squared_error", 0.25, 0.71, 0.005),
        ("cross_entropy", 0.38, 1.06, 0.005),
    ],
)
def test_errors_equal_those_of_the_worked_example(name, first, second, tolerance):
    assert MEASURES[name](NETWORK_1, TRUTH) == pytest.approx(first, abs=tolerance)
    assert MEASURES[name](NETWORK_2, TRUTH) == pytest.approx(second, abs=tolerance)


@pytest.mark.parametrize("name", MEASURES)
def test_errors_of_a_certain_right_answer_are_zero(name):
    assert MEASURES[name](np.eye(4), np.arange(4)) == 0.0


def test_cross_entropy_of_a_zero_probability_stays_finite():
    loss = measures.cross_entropy(np.array([[1.0, 0.0]]), np.array([1]))

    assert loss == pytest.approx(-math.log(np.finfo(np.float32).tiny))
    assert loss == pytest.approx(87.3, abs=0.05)


def test_mean_squared_error_does_not_change_its_input():
    probabilities = NETWORK_1.copy()

    measures.mean_squared_error(probabilities, TRUTH)

    np.testing.assert_array_equal(probabilities, NETWORK_1)


def test_reliability_of_certain_but_half_right_answers_has_an_ece_of_fifty():
    answers = np.array([[1.0, 0.0]] * 4)

    measured = measures.reliability(answers, np.array([0, 0, 1, 1]))

    assert measured.ece_percent == pytest.approx(50)
    assert [b.n for b in measured.bins] == [0] * 14 + [4]
    assert (measured.bins[14].mean_probability, measured.bins[14].accuracy) == (1.0, 0.5)
    assert (measured.bins[0].mean_probability, measured.bins[0].accuracy) == (None, None)


def test_reliability_of_calibrated_answers_has_an_ece_of_zero():
    answers = np.array([[0.75, 0.25]] * 8)

    assert measures.reliability(answers, np.array([0] * 6 + [1] * 2)).ece_percent == 0.0


def test_reliability_weighs_bins_by_their_pictures():
    answers = np.array([[0.9, 0.1]] * 3 + [[0.6, 0.4]])

    measured = measures.reliability(answers, np.array([0, 0, 0, 1]))

    assert measured.ece_percent == pytest.approx(100 * (3 * 0.1 + 1 * 0.6) / 4)


def test_reliability_bins_are_open_below_and_closed_above():
    answers = np.array([[0.5, 0.5], [0.51, 0.49]])

    measured = measures.reliability(answers, np.array([0, 0]), n_bins=2)

    assert [b.n for b in measured.bins] == [1, 1]


def test_top_k_accuracy_counts_the_first_k():
    answers = np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]])
    truth = np.array([1, 0])

    assert [measures.top_k_accuracy(answers, truth, k) for k in (1, 2, 3, 9)] == [0, 0.5, 1, 1]


def test_confusion_matrix_has_true_classes_in_rows():
    answers = np.eye(3)[[1, 1, 2, 0]]

    confusion = measures.confusion_matrix(answers, np.array([0, 0, 2, 2]))

    assert confusion.tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 1]]
    assert confusion.dtype == np.int64


def test_at_thresholds_leaves_out_less_certain_predictions():
    first, second, third = measures.at_thresholds(NETWORK_1, TRUTH, (0.0, 0.9, 0.95))

    assert first.answered_percent == 100
    assert first.right_percent == pytest.approx(200 / 3)
    assert second.answered_percent == pytest.approx(200 / 3)
    assert second.right_percent == 100
    assert (third.answered_percent, third.right_percent) == (0, None)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_evaluate_results_are_consistent(seed):
    answers, truth = rows(seed)

    measured = measures.evaluate(answers, truth, "test")

    assert measured.confusion.sum() == measured.n == 40
    assert measured.top1_percent == pytest.approx(100 * (1 - measured.classification_error))
    assert measured.weighted.recall == pytest.approx(measured.top1_percent / 100)
    assert sum(b.n for b in measured.reliability.bins) == 40
    low, high = measured.top1_interval_percent
    assert low <= measured.top1_percent <= high


def test_evaluate_agrees_with_the_manifests_accuracy():
    answers, truth = rows(1)

    measured = measures.evaluate(answers, truth, "test")

    metrics = accuracy(answers, truth, "test")
    assert round(measured.top1_percent, 3) == metrics.top1_percent
    assert round(measured.top5_percent, 3) == metrics.top5_percent


def test_evaluation_to_json_is_plain_and_complete():
    measured = measures.evaluate(NETWORK_1, TRUTH, "test")

    read = json.loads(json.dumps(measured.to_json()))

    assert read["split"] == "test"
    assert read["confusion"] == [[1, 1], [0, 1]]
    assert read["top1_interval_percent"] == list(measured.top1_interval_percent)
    assert read["classes"][0]["support"] == 2
    assert len(read["reliability"]["bins"]) == 15
    assert read["macro"]["f1"] == measured.macro.f1


def test_evaluate_without_pictures_is_refused():
    with pytest.raises(PicturesMissing, match="no pictures"):
        measures.evaluate(np.empty((0, 3)), np.empty(0, dtype=np.int64), "test")


@pytest.mark.parametrize(
    ("answers", "truth", "message"),
    [
        (np.ones((2, 2)) / 2, np.array([0]), "shapes"),
        (np.ones(2), np.array([0, 0]), "shapes"),
        (np.ones((1, 2)) / 2, np.array([2]), "class index"),
        (np.ones((1, 2)) / 2, np.array([-1]), "class index"),
        (np.array([[np.nan, 1.0]]), np.array([0]), "finite"),
    ],
    ids=["rows", "rank", "index", "negative", "nan"],
)
def test_evaluate_of_invalid_arrays_is_refused(answers, truth, message):
    with pytest.raises(ValueError, match=message):
        measures.evaluate(answers, truth, "test")

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.manifest import Calibration
from contract.predictions import softmax
from training.errors import PicturesMissing
from training.evaluation import calibrate
from training.evaluation.measures import cross_entropy, reliability


def drawn(
    n: int, n_classes: int = 5, *, seed: int = 0, sharpness: float = 1.0
) -> calibrate.Labelled:
    """Returns logits, and classes drawn from softmax(logits / sharpness)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, n_classes))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    indexes = (chances.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return (sharpness * logits).astype(np.float32), indexes


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 3.0, 8.0])
def test_fit_temperature_finds_the_sharpness_of_the_logits(sharpness):
    logits, indexes = drawn(4000, sharpness=sharpness)

    assert calibrate.fit_temperature(logits, indexes) == pytest.approx(sharpness, rel=0.1)


def test_fit_temperature_is_at_the_minimum_of_the_cross_entropy():
    logits, indexes = drawn(4000, sharpness=3.0)

    fitted = calibrate.fit_temperature(logits, indexes)

    def loss(temperature: float) -> float:
        return cross_entropy(softmax(logits, temperature), indexes)

    assert loss(fitted) < min(loss(0.95 * fitted), loss(1.05 * fitted))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 30),
    n_classes=st.integers(2, 6),
    sharpness=st.floats(0.01, 100),
)
def test_fit_temperature_never_raises_the_cross_entropy(seed, n, n_classes, sharpness):
    logits, indexes = drawn(n, n_classes, seed=seed, sharpness=sharpness)

    fitted = calibrate.fit_temperature(logits, indexes)

    assert calibrate.MIN_TEMPERATURE <= fitted <= calibrate.MAX_TEMPERATURE
    before, after = (cross_entropy(softmax(logits, t), indexes) for t in (1.0, fitted))
    assert after <= before + 1e-6


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.05, 20))
def test_temperature_never_changes_the_order_of_classes(seed, temperature):
    logits = np.random.default_rng(seed).integers(-40, 41, (8, 6)) / 8

    divided = softmax(logits, temperature)

    for row, probabilities in zip(logits, divided, strict=True):
        assert (np.diff(probabilities[np.argsort(row)]) >= 0).all()


def test_fit_temperature_of_perfect_predictions_stays_below_certainty():
    # With one-hot targets, the best temperature of these pictures would be 0, which claims certainty.
    indexes = np.arange(30) % 3
    logits = 4 * np.eye(3, dtype=np.float32)[indexes]

    fitted = calibrate.fit_temperature(logits, indexes)

    answer = softmax(logits, fitted)[np.arange(30), indexes]
    np.testing.assert_allclose(answer, 31 / 32, atol=1e-4)


@pytest.mark.parametrize(
    ("scale", "bound"), [(1e-3, calibrate.MIN_TEMPERATURE), (1e4, calibrate.MAX_TEMPERATURE)]
)
def test_fit_temperature_stops_at_its_bounds(scale, bound):
    logits, indexes = drawn(500, sharpness=scale)

    assert calibrate.fit_temperature(logits, indexes) == pytest.approx(bound)


def test_fit_temperature_of_equal_logits_is_one():
    assert calibrate.fit_temperature(np.zeros((4, 3), dtype=np.float32), np.arange(4) % 3) == 1.0


def test_fit_temperature_of_a_single_class_is_one():
    assert calibrate.fit_temperature(np.ones((4, 1), dtype=np.float32), np.zeros(4, int)) == 1.0


def test_fit_temperature_without_pictures_is_refused():
    with pytest.raises(PicturesMissing):
        calibrate.fit_temperature(np.empty((0, 3), dtype=np.float32), np.empty(0, dtype=np.int64))


def test_fit_temperature_of_an_infinite_logit_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        calibrate.fit_temperature(np.array([[np.inf, 0]], dtype=np.float32), np.array([0]))


def test_conformal_threshold_is_the_ranked_probability():
    # With 9 pictures and 90% coverage, the threshold is the nonconformity of rank ceil(10 * 0.9) = 9,
    # which belongs to the lowest probability.
    true_class = np.linspace(0.55, 0.95, 9)
    logits = np.log(np.stack([true_class, 1 - true_class], axis=1)).astype(np.float32)
    labelled = logits, np.zeros(9, dtype=np.int64)

    (fitted,) = calibrate.conformal(labelled, labelled, coverages_percent=(90,))
    (lower,) = calibrate.conformal(labelled, labelled, coverages_percent=(80,))

    assert fitted.min_probability == pytest.approx(0.55)
    assert lower.min_probability == pytest.approx(0.60)
    assert (fitted.achieved_percent, fitted.mean_set_size) == (100.0, 1.0)


@pytest.mark.parametrize(("n", "all_classes"), [(98, True), (99, False)])
def test_conformal_with_too_few_pictures_includes_every_class(n, all_classes):
    labelled = drawn(n, seed=1)

    fitted = calibrate.conformal(labelled, labelled)[-1]

    assert fitted.coverage_percent == 99
    assert (fitted.min_probability == 0.0) is all_classes
    assert (fitted.mean_set_size == 5.0) is all_classes


def test_conformal_reaches_the_required_coverage_of_new_pictures_on_average():
    """The guarantee holds for the mean over fits: from coverage to coverage + 1 / (N + 1)."""
    logits, indexes = drawn(400 * 250, seed=3, sharpness=2.0)
    achieved = []
    for start in range(0, len(indexes), 250):
        fitting = slice(start, start + 100)
        new = slice(start + 100, start + 250)
        labelled = (logits[fitting], indexes[fitting])
        sets = calibrate.conformal(labelled, (logits[new], indexes[new]))
        achieved.append([fitted.achieved_percent for fitted in sets])

    means = np.mean(achieved, axis=0)

    errors = np.std(achieved, axis=0) / np.sqrt(400)
    required = np.array(calibrate.COVERAGES_PERCENT)
    assert (means >= required - 3 * errors).all()
    # A set includes the first class even if its probability is below the threshold.
    assert (means[1:] <= required[1:] + 1.0 + 3 * errors[1:]).all()


def test_conformal_sets_grow_with_the_coverage():
    sets = calibrate.conformal(drawn(500, seed=4), drawn(500, seed=5))

    sizes = [fitted.mean_set_size for fitted in sets]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]


def test_prediction_sets_always_include_the_first_class():
    answers = np.array([[0.4, 0.35, 0.25], [0.9, 0.06, 0.04]], dtype=np.float32)

    members = calibrate.prediction_sets(answers, 0.5)

    assert members.tolist() == [[True, False, False], [True, False, False]]


def test_unlike_flags_at_most_its_share_of_new_pictures_on_average():
    logits, _ = drawn(400 * 200, seed=6)
    flagged = [
        calibrate.fit_out_of_distribution(
            logits[start : start + 99], logits[start + 99 : start + 200], 1.5
        ).flagged_percent
        for start in range(0, len(logits), 200)
    ]

    error = np.std(flagged) / np.sqrt(len(flagged))
    assert np.mean(flagged) == pytest.approx(calibrate.UNLIKE_PERCENT, abs=3 * error)


def test_is_unlike_flags_flat_logits_and_keeps_the_sharp_ones():
    sharp = 10 * np.eye(4, dtype=np.float32)[np.arange(60) % 4]
    sharp += np.linspace(0, 1, 60, dtype=np.float32)[:, None] * sharp
    rule = calibrate.fit_out_of_distribution(sharp, sharp, 2.0)

    assert calibrate.is_out_of_distribution(np.zeros((3, 4), dtype=np.float32), rule, 2.0).all()
    # The threshold is the score of rank 3 of 60.
    assert calibrate.is_out_of_distribution(sharp, rule, 2.0).sum() == 2
    assert rule.flagged_percent == pytest.approx(100 * 2 / 60, abs=1e-3)


def test_energy_equals_its_formula():
    logits = np.array([[1.0, 2.0, 3.0], [800.0, 0.0, -800.0]], dtype=np.float32)

    scores = calibrate.energy(logits, 2.0)

    by_hand = 2 * np.log(np.exp([0.5, 1.0, 1.5]).sum())
    np.testing.assert_allclose(scores, [by_hand, 800.0])


def test_unlike_with_few_pictures_takes_the_lowest_score():
    logits = np.array([[1, 0], [2, 0], [3, 0]], dtype=np.float32)

    rule = calibrate.fit_out_of_distribution(logits, logits)

    assert rule.flagged_percent == 0.0
    assert rule.threshold == pytest.approx(np.log(1 + np.exp(1)))


def test_calibrate_fits_on_validation_and_measures_on_test():
    validation, test = drawn(2000, seed=7, sharpness=3.0), drawn(1000, seed=8, sharpness=3.0)
    temperature = calibrate.fit_temperature(*validation)

    made = calibrate.calibrate(validation, test, temperature)

    assert made.temperature == temperature
    assert made.n_fitted == 2000
    assert made.ece_percent is not None
    assert made.ece_before_percent is not None
    before, after = (reliability(softmax(test[0], t), test[1]) for t in (1.0, temperature))
    assert made.ece_before_percent == pytest.approx(before.ece_percent, abs=1e-3)
    assert made.ece_percent == pytest.approx(after.ece_percent, abs=1e-3)
    assert made.ece_percent < made.ece_before_percent / 3
    assert made.conformal == calibrate.conformal(validation, test, temperature)
    assert made.unlike == calibrate.fit_out_of_distribution(validation[0], test[0], temperature)
    assert Calibration.model_validate_json(made.model_dump_json()) == made


@pytest.mark.parametrize("empty", ["validation", "test"])
def test_calibrate_with_an_empty_split_is_refused(empty):
    splits = {"validation": drawn(5), "test": drawn(5)}
    splits[empty] = drawn(0)

    with pytest.raises(PicturesMissing):
        calibrate.calibrate(splits["validation"], splits["test"], 1.0)

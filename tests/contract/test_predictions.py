import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from contract.errors import GoldenMismatch
from contract.manifest import GoldenExample, parse_manifest
from contract.predictions import (
    Prediction,
    check_golden,
    served_tolerance,
    sigmoid,
    softmax,
    to_predictions,
    to_probabilities,
    top_k,
)
from tests.contract.manifests import changed, fields

LOGITS = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 20)),
    elements=st.floats(-1e4, 1e4, width=32),
)
ROW = npst.arrays(np.float32, st.integers(1, 30), elements=st.floats(0, 1, width=32))


def manifest(data=None):
    return parse_manifest(json.dumps(data or fields()))


def logits_manifest(temperature):
    outputs = [{"name": "logits", "kind": "logits"}]
    return manifest(
        {**changed("graph.outputs", outputs), "calibration": {"temperature": temperature}}
    )


def golden(*predictions, tolerance=0.05, served=None):
    top5 = [{"index": i, "label": f"class {i}", "probability": p} for i, p in predictions]
    return GoldenExample(
        file="a.png", sha256="0" * 64, top5=top5, tolerance=tolerance, served_tolerance=served
    )


def test_to_predictions_names_the_most_probable_classes():
    predictions = to_predictions(np.array([0.1, 0.7, 0.2], np.float32), manifest(), 2)

    assert [p.label for p in predictions] == ["green", "blue"]
    assert predictions[0] == Prediction("green", 1, None, float(np.float32(0.7)))


def test_to_predictions_carries_the_synset():
    labelled = manifest(changed("labels.0.synset", "n02012849"))

    [prediction] = to_predictions(np.array([1, 0, 0], np.float32), labelled, 1)

    assert prediction.synset == "n02012849"


def test_to_predictions_omits_improbable_classes():
    predictions = to_predictions(np.array([0.1, 0.7, 0.2], np.float32), manifest(), 3, 0.15)

    assert [p.index for p in predictions] == [1, 2]


def test_to_probabilities_leaves_probabilities_alone():
    scores = np.array([[0.2, 0.3, 0.5]], np.float32)

    assert to_probabilities(scores, manifest()) is scores


def test_to_probabilities_applies_softmax_with_temperature():
    logits = np.array([[1, 2, 3]], np.float32)

    probabilities = to_probabilities(logits, logits_manifest(2.0))

    np.testing.assert_array_equal(probabilities, softmax(logits, 2.0))


def test_check_golden_exact_answer_has_zero_difference():
    answer = np.array([0.75, 0.25, 0.0], np.float32)

    assert check_golden(golden((0, 0.75), (1, 0.25)), answer) == 0


def test_check_golden_returns_the_largest_difference():
    worst = check_golden(golden((0, 0.7), (1, 0.2)), [0.71, 0.23, 0.06])

    assert worst == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ([0.5625, 0.4375], True),
        ([0.4375, 0.5], True),
        ([0.563, 0.437], False),
        ([0.437, 0.5], False),
    ],
    ids=["upper-edge", "lower-edge", "above", "below"],
)
def test_check_golden_tolerance_is_inclusive(answer, fits):
    example = golden((0, 0.5), tolerance=0.0625)

    if fits:
        assert check_golden(example, answer) == 0.0625
    else:
        with pytest.raises(GoldenMismatch, match=r"the tolerance is 0\.0625"):
            check_golden(example, answer)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 1, 2], ids=["first", "second", "not-expected"])
def test_check_golden_non_finite_number_is_refused(value, index):
    answer = np.array([0.7, 0.2, 0.1], np.float32)
    answer[index] = value

    with pytest.raises(GoldenMismatch):
        check_golden(golden((0, 0.7), (1, 0.2)), answer)


def test_check_golden_near_tie_can_change_places():
    worst = check_golden(golden((0, 0.46), (1, 0.44)), [0.44, 0.46, 0.1])

    assert worst == pytest.approx(0.02)


def test_check_golden_other_class_far_ahead_is_refused():
    with pytest.raises(GoldenMismatch, match="class 2 is first, expected 'class 0'"):
        check_golden(golden((0, 0.4)), [0.39, 0.1, 0.51])


def test_check_golden_swapped_classes_are_refused():
    with pytest.raises(GoldenMismatch, match="differs"):
        check_golden(golden((0, 0.7), (1, 0.2)), [0.2, 0.7, 0.1])


def test_check_golden_too_few_classes_is_refused():
    with pytest.raises(GoldenMismatch):
        check_golden(golden((0, 0.7), (4, 0.2)), [0.7, 0.2, 0.1])


@given(LOGITS, st.floats(0.05, 20))
def test_softmax_rows_are_finite_and_sum_to_one(logits, temperature):
    probabilities = softmax(logits, temperature)

    assert probabilities.dtype == np.float32
    assert probabilities.shape == logits.shape
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


@given(LOGITS)
def test_softmax_keeps_the_order(logits):
    probabilities = softmax(logits)

    order = np.argsort(logits, axis=-1, kind="stable")
    assert (np.diff(np.take_along_axis(probabilities, order, -1)) >= 0).all()


@given(LOGITS, st.floats(-1e4, 1e4))
def test_softmax_is_invariant_to_adding_a_constant(logits, constant):
    shifted = logits.astype(np.float64) + constant

    np.testing.assert_allclose(softmax(shifted), softmax(logits), atol=1e-6)


@pytest.mark.parametrize("logits", [[-100, 10], [-60, 30, 5], [1e4, -1e4], [-1e4, -1e4]])
def test_softmax_large_negative_logits_stay_finite(logits):
    # Subtracting the value of the largest magnitude instead of the maximum would give NaN here.
    probabilities = softmax(np.array(logits, np.float32))

    assert np.isfinite(probabilities).all()
    assert probabilities.argmax() == int(np.argmax(logits))


def test_softmax_known_values():
    np.testing.assert_allclose(softmax(np.log([1.0, 2.0, 5.0])), [0.125, 0.25, 0.625], rtol=1e-6)


def test_softmax_temperature_flattens_and_sharpens():
    logits = np.array([1.0, 0.0])

    assert softmax(logits, 2.0)[0] < softmax(logits)[0] < softmax(logits, 0.5)[0]


def test_softmax_does_not_change_its_input():
    logits = np.array([3.0, 1.0])

    softmax(logits, 2.0)

    assert list(logits) == [3.0, 1.0]


@given(ROW, st.integers(0, 40))
def test_top_k_is_the_sorted_head(probabilities, k):
    pairs = top_k(probabilities, k)

    expected = sorted(enumerate(probabilities.tolist()), key=lambda pair: (-pair[1], pair[0]))
    assert pairs == expected[:k]


def test_top_k_ties_go_by_index():
    assert [index for index, _ in top_k(np.full(4, 0.25, np.float32), 3)] == [0, 1, 2]


@pytest.mark.parametrize("k", [3, 4, 1000])
def test_top_k_above_the_class_count_returns_all(k):
    assert len(top_k(np.array([0.2, 0.5, 0.3], np.float32), k)) == 3


@pytest.mark.parametrize("k", [0, -1])
def test_top_k_zero_is_empty(k):
    assert top_k(np.array([0.5, 0.5], np.float32), k) == []


@pytest.mark.parametrize(("least", "n"), [(0.0, 3), (0.25, 2), (0.26, 1), (0.9, 0)])
def test_top_k_minimum_is_inclusive(least, n):
    probabilities = np.array([0.5, 0.25, 0.125], np.float32)

    assert len(top_k(probabilities, 3, least)) == n


def test_top_k_returns_python_numbers():
    [(index, probability)] = top_k(np.array([1.0], np.float32), 1)

    assert (type(index), type(probability)) == (int, float)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_sigmoid_is_the_softmax_of_two_classes(temperature):
    logits = np.array([-1e4, -3.0, 0.0, 0.7, 1e4])

    found = sigmoid(logits, temperature)

    pairs = np.stack([logits, np.zeros_like(logits)], axis=-1)
    np.testing.assert_allclose(found, softmax(pairs, temperature)[:, 0], rtol=1e-6)
    assert found.dtype == np.float32


def test_to_probabilities_uses_the_manifests_activation():
    document = changed("graph.outputs", [{"name": "a", "kind": "logits"}])
    document |= {"activation": "sigmoid", "calibration": {"temperature": 2.0}}
    logits = np.array([[0.0, 4.0, -4.0]], np.float32)

    found = to_probabilities(logits, parse_manifest(json.dumps(document)))

    np.testing.assert_array_equal(found, sigmoid(logits, 2.0))


def test_check_golden_of_a_served_answer_uses_its_own_tolerance():
    example = golden((0, 0.7), (1, 0.2), tolerance=0.01, served=0.02)
    answer = [0.715, 0.2, 0.085]

    assert check_golden(example, answer, served=True) == pytest.approx(0.015)
    with pytest.raises(GoldenMismatch, match=r"with the reference pixels, the tolerance is 0\.01"):
        check_golden(example, answer)
    with pytest.raises(GoldenMismatch, match=r"as a request, the tolerance is 0\.02"):
        check_golden(example, [0.725, 0.2, 0.075], served=True)


def test_check_golden_served_with_another_class_far_ahead_is_refused():
    with pytest.raises(GoldenMismatch, match="class 2 is first"):
        check_golden(golden((0, 0.4), served=0.02), [0.39, 0.1, 0.51], served=True)


@pytest.mark.parametrize(
    ("stated", "tolerance", "expected"),
    [
        pytest.param(0.02, 0.01, 0.02, id="stated"),
        pytest.param(None, 0.01, 0.1, id="published-before"),
        pytest.param(None, 0.15, 0.15, id="published-before-and-loose"),
    ],
)
def test_served_tolerance_of_versions_that_state_none_is_wide(stated, tolerance, expected):
    example = golden((0, 0.7), tolerance=tolerance, served=stated)

    assert served_tolerance(example) == expected

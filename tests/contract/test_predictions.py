import json

import numpy as np
import pytest

from contract.errors import GoldenMismatch
from contract.manifest import GoldenExample, parse_manifest
from contract.predictions import (
    Prediction,
    check_golden,
    to_predictions,
    to_probabilities,
)
from contract.scores import softmax
from tests.contract.manifests import changed, fields


def manifest(data=None):
    return parse_manifest(json.dumps(data or fields()))


def logits_manifest(temperature):
    outputs = [{"name": "logits", "kind": "logits"}]
    return manifest(
        {**changed("graph.outputs", outputs), "calibration": {"temperature": temperature}}
    )


def golden(*predictions, tolerance=0.05):
    top5 = [{"index": i, "label": f"class {i}", "probability": p} for i, p in predictions]
    return GoldenExample(file="a.png", sha256="0" * 64, top5=top5, tolerance=tolerance)


def test_to_predictions_names_the_most_probable_classes():
    predictions = to_predictions(np.array([0.1, 0.7, 0.2], np.float32), manifest(), 2)

    assert [p.label for p in predictions] == ["green", "blue"]
    assert predictions[0] == Prediction("green", 1, None, float(np.float32(0.7)))


def test_to_predictions_carries_the_synset():
    labelled = manifest(changed("labels.0.synset", "n02012849"))

    [prediction] = to_predictions(np.array([1, 0, 0], np.float32), labelled, 1)

    assert prediction.synset == "n02012849"


def test_to_predictions_leaves_out_the_improbable():
    predictions = to_predictions(np.array([0.1, 0.7, 0.2], np.float32), manifest(), 3, 0.15)

    assert [p.index for p in predictions] == [1, 2]


def test_to_probabilities_leaves_probabilities_alone():
    scores = np.array([[0.2, 0.3, 0.5]], np.float32)

    assert to_probabilities(scores, manifest()) is scores


def test_to_probabilities_applies_softmax_with_temperature():
    logits = np.array([[1, 2, 3]], np.float32)

    probabilities = to_probabilities(logits, logits_manifest(2.0))

    np.testing.assert_array_equal(probabilities, softmax(logits, 2.0))


def test_check_golden_exact_answer_differs_by_nothing():
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
def test_check_golden_number_that_is_not_finite_is_refused(value, index):
    answer = np.array([0.7, 0.2, 0.1], np.float32)
    answer[index] = value

    with pytest.raises(GoldenMismatch):
        check_golden(golden((0, 0.7), (1, 0.2)), answer)


def test_check_golden_near_tie_may_change_places():
    worst = check_golden(golden((0, 0.46), (1, 0.44)), [0.44, 0.46, 0.1])

    assert worst == pytest.approx(0.02)


def test_check_golden_other_class_far_ahead_is_refused():
    with pytest.raises(GoldenMismatch, match="class 2 is first, 'class 0' was expected"):
        check_golden(golden((0, 0.4)), [0.39, 0.1, 0.51])


def test_check_golden_swapped_classes_are_refused():
    with pytest.raises(GoldenMismatch, match="differs"):
        check_golden(golden((0, 0.7), (1, 0.2)), [0.2, 0.7, 0.1])


def test_check_golden_too_few_classes_is_refused():
    with pytest.raises(GoldenMismatch):
        check_golden(golden((0, 0.7), (4, 0.2)), [0.7, 0.2, 0.1])

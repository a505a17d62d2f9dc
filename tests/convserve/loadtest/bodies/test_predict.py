from __future__ import annotations

import base64
import json

import pytest

from convserve.loadtest.bodies import BODIES, Options

PICTURES = [b"\xff\xd8\xff first", b"second"]
MODEL = Options(model="m")


def read(name: str, answer: object) -> list[str]:
    return BODIES[name].first_classes(json.dumps(answer).encode())


def test_tfserving_call_has_an_instance_for_each_picture():
    call = BODIES["tfserving"].call(PICTURES, MODEL)

    document = json.loads(call.content)
    assert call.headers == (("Content-Type", "application/json"),)
    assert list(document) == ["instances"]
    assert [base64.b64decode(one["b64"]) for one in document["instances"]] == PICTURES


def test_tfserving_call_names_the_input_if_it_is_given():
    call = BODIES["tfserving"].call(PICTURES[:1], Options(model="m", field="image_bytes"))

    (instance,) = json.loads(call.content)["instances"]
    assert base64.b64decode(instance["image_bytes"]["b64"]) == PICTURES[0]


@pytest.mark.parametrize(
    ("predictions", "classes"),
    [
        ([[0.1, 0.9], [0.8, 0.2]], ["1", "0"]),
        ([{"scores": [0.1, 0.9]}, {"scores": [0.8, 0.2]}], ["1", "0"]),
        ([{"classes": 1, "probabilities": [0.1, 0.9]}, {"classes": 0}], ["1", "0"]),
        ([{"classes": ["cat", "dog"], "scores": [0.1, 0.9]}], ["dog"]),
        ([{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.8}], ["cat", "dog"]),
        ([[["cat", 0.9], ["dog", 0.1]]], ["cat"]),
        (["cat", "dog"], ["cat", "dog"]),
        ([3, 7], ["3", "7"]),
        (["cat", {"error": "broken"}], ["cat", "!error"]),
    ],
    ids=[
        "rows",
        "scores",
        "estimator",
        "classes with scores",
        "a label each",
        "pairs",
        "labels",
        "indices",
        "one failed",
    ],
)
def test_tfserving_answer_has_an_item_for_each_picture(predictions, classes):
    assert read("tfserving", {"predictions": predictions}) == classes


@pytest.mark.parametrize(
    "answer",
    [
        {"predictions": []},
        {"predictions": [0.1, 0.9]},
        {"predictions": [[0.1]]},
        {"predictions": {"cat": 0.9}},
        {"outputs": [[0.1, 0.9]]},
        {"error": "Malformed request"},
        [0.1, 0.9],
    ],
    ids=["none", "a score each", "one class", "object", "column format", "error", "list"],
)
def test_tfserving_answer_without_a_sure_class_is_refused(answer):
    with pytest.raises(ValueError, match="in the answer"):
        read("tfserving", answer)


def test_torchserve_call_is_the_picture_with_its_type():
    call = BODIES["torchserve"].call(PICTURES[:1], MODEL)

    assert (call.headers, call.content) == ((("Content-Type", "image/jpeg"),), PICTURES[0])


@pytest.mark.parametrize(
    "answer",
    [
        {"dog": 0.1, "cat": 0.9},
        {"cat": 1.0},
        {"cat": 1, "dog": 0.0},
        [{"label": "cat", "score": 0.9}],
        {"label": "cat"},
    ],
    ids=["classes", "one class", "without fraction", "ranking", "label"],
)
def test_torchserve_answer_gives_the_most_probable_label(answer):
    assert read("torchserve", answer) == ["cat"]


@pytest.mark.parametrize(
    "answer",
    [{}, {"code": 404, "type": "ModelNotFoundException", "message": "no"}, {"code": 404}],
    ids=["empty", "error", "numbers without fraction"],
)
def test_torchserve_answer_without_a_class_is_refused(answer):
    with pytest.raises(ValueError, match="no class"):
        read("torchserve", answer)

from __future__ import annotations

import json

import pytest

from convserve.loadtest.bodies import BODIES

NATIVE = [{"label": "cat", "index": 2, "probability": 0.9}, {"label": "dog", "probability": 0.1}]
HANDWRITTEN = {
    "label": {"label": "cat", "score": 0.9},
    "label and its rivals": {"label": "cat", "confidences": [{"label": "cat", "confidence": 0.9}]},
    "class name beside its id": {"class_id": "n02123045", "class_name": "cat"},
    "prediction": {"prediction": "cat"},
    "prediction with members": {"prediction": {"class": "cat", "confidence": 0.9}},
    "wrapped": {"status": "ok", "result": {"predictions": NATIVE}},
    "batch of one": [{"predictions": NATIVE}],
    "ranking": NATIVE,
    "ranking with other names": [{"class": "cat", "prob": 0.9}, {"class": "dog", "prob": 0.1}],
    "ranking in no order": [{"label": "dog", "score": 0.1}, {"label": "cat", "score": 0.9}],
    "pairs": [["dog", 0.1], ["cat", 0.9]],
    "decoded by Keras": [[["n02", "cat", 0.9], ["n05", "dog", 0.1]]],
    "labels beside scores": {"labels": ["dog", "cat"], "scores": [0.1, 0.9]},
    "Vertex": {"predictions": [{"displayNames": ["dog", "cat"], "confidences": [0.1, 0.9]}]},
    "one class of many scores": {"classes": ["cat"], "probabilities": [0.1, 0.9, 0.0]},
}
INDICES = {
    "scores": [0.1, 0.2, 0.7, 0.0],
    "scores in a batch of one": [[0.1, 0.2, 0.7, 0.0]],
    "some scores without a fraction": {"output": [0, 0.0, 1, 0]},
    "logits": {"logits": [-3.5, 0.25, 8.0]},
    "index as class": {"class": 2, "score": 0.9},
    "ranking of indices": [{"class_id": 2, "score": 0.9}, {"class_id": 1, "score": 0.1}],
    "ranking of numbers named label": [{"label": 2, "probability": 0.9}],
    "first of equals": {"scores": [0.0, 0.1, 0.4, 0.4]},
}
NO_CLASS: dict[str, object] = {
    "nothing": {},
    "null": None,
    "text": "cat",
    "number": 2,
    "no predictions": {"predictions": []},
    "empty list": [],
    "empty lists": [[], []],
    "problem": {"type": "about:blank", "status": 422, "code": "image_truncated", "detail": "no"},
    "error": {"error": "model not found"},
    "another service's health": {"status": "ok", "uptime": 0.5},
    "a word that is no class": {"result": ["ok"], "time": 0.1},
    "two lists to choose from": {"predictions": NATIVE, "results": NATIVE},
    "integers may be scores or indices": {"output": [0, 1, 0]},
    "a score alone": {"output": [0.9]},
    "truth values": {"scores": [True, 0.5]},
    "more labels than scores": {"labels": ["cat", "dog"], "scores": [0.1, 0.2, 0.7]},
    "rivals without scores": {"labels": ["cat", "dog"]},
    "label is null": {"label": None},
}


def read(answer: object) -> list[str]:
    return BODIES["raw"].first_classes(json.dumps(answer, ensure_ascii=False).encode())


@pytest.mark.parametrize("answer", HANDWRITTEN.values(), ids=HANDWRITTEN)
def test_answer_of_a_handwritten_server_gives_its_label(answer):
    assert read(answer) == ["cat"]


@pytest.mark.parametrize("answer", INDICES.values(), ids=INDICES)
def test_answer_without_labels_gives_the_index(answer):
    assert read(answer) == ["2"]


@pytest.mark.parametrize("answer", NO_CLASS.values(), ids=NO_CLASS)
def test_answer_without_a_sure_class_is_refused(answer):
    with pytest.raises(ValueError, match=r"^no class in the answer "):
        read(answer)


@pytest.mark.parametrize("answer", ['{"scores": [NaN, 0.5]}', '[["cat", NaN], ["dog", 0.5]]'])
def test_answer_with_a_score_that_is_not_a_number_is_refused(answer):
    with pytest.raises(ValueError, match="not a number"):
        BODIES["raw"].first_classes(answer.encode())


@pytest.mark.parametrize(
    "answer",
    [
        [{"predictions": NATIVE}, {"predictions": NATIVE[1:]}],
        {"results": [{"predictions": NATIVE}, {"predictions": NATIVE[1:]}]},
        {"predictions": ["cat", "dog"]},
        {"predictions": [{"label": "cat"}, {"label": "dog"}]},
        [[["cat", 0.9], ["dog", 0.1]], [["dog", 0.7], ["cat", 0.3]]],
    ],
    ids=["list", "results", "bare labels", "labels without scores", "pairs"],
)
def test_answer_to_two_pictures_gives_two_classes(answer):
    assert read(answer) == ["cat", "dog"]


@pytest.mark.parametrize(
    ("error", "stand_in"),
    [({"code": "image_truncated"}, "!image_truncated"), ("broken", "!error"), ({}, None)],
    ids=["code", "text", "empty"],
)
def test_answer_whose_second_picture_failed_never_gives_a_class_for_it(error, stand_in):
    answer = {"results": [{"predictions": NATIVE}, {"error": error}]}

    if stand_in:
        assert read(answer) == ["cat", stand_in]
    else:
        with pytest.raises(ValueError, match="no class"):
            read(answer)


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!doctype html><title>Welcome to nginx!</title>",
        b'{"type":"about:blank","status":404,"code":"not_found","detail":"no"}',
        b'{"error": "Model not found"}',
        b"\xff\xd8\xff\xe0",
        b"[" * 100_000,
        b'{"predictions":[{"label":"cat","proba',
    ],
    ids=["empty", "html", "problem", "error", "jpeg", "deep", "cut"],
)
def test_content_that_is_no_answer_is_refused_by_every_kind(name, content):
    with pytest.raises(ValueError, match=r"answer|JSON|class|outputs"):
        BODIES[name].first_classes(content)

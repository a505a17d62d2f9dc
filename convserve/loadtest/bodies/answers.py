"""Finds the first class in JSON answers of servers that follow no protocol.

Servers written by hand name their members as they like. The usual names and shapes are understood
here. An answer that could mean two things is refused: a wrong class would be reported as a fault of
the server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pydantic_core import from_json

FAILED: Final = "!"  # begins what stands for the class of a picture that failed alone

_LABEL: Final = (
    "label",
    "class_name",
    "class",
    "category",
    "predicted_class",
    "predicted_label",
    "prediction",
    "class_id",
)
_SCORE: Final = ("probability", "score", "confidence", "prob")
_LABELS: Final = ("labels", "classes", "class_names", "displayNames")  # the last: Vertex AI
_SCORES: Final = ("scores", "probabilities", "confidences", "probs", "logits")
_AROUND: Final = (
    "predictions",
    "prediction",
    "results",
    "result",
    "outputs",
    "output",
    "data",
    "top_k",
    "top5",
)


def parse_json(content: bytes) -> Any:
    """Returns the document, or raises ValueError with the beginning of what is not JSON."""
    try:
        return from_json(content)  # twice as fast as the standard library
    except ValueError as error:
        what = f"is not JSON: {content[:80]!r}" if content else "is empty"
        raise ValueError(f"the answer {what}") from error


def read_first_classes(answer: object) -> list[str]:
    """Returns the first class of each picture in an answer to one picture or several.

    A list of labels with scores is the ranking of one picture; a list of anything else has one
    item for each picture.

    Raises:
        ValueError: no class is found, or more than one reading is possible.
    """
    if isinstance(answer, dict):
        found = _in_members(answer)
        if found is not None:
            return [found]
        bare = "predictions" in answer
        answer = _unwrap(answer)
    else:
        bare = False

    if not isinstance(answer, list):
        return [read_first_class(answer)]
    best = _best(answer)
    return read_each(answer, bare=bare) if best is None else [best]


def read_each(answers: Sequence[object], *, bare: bool) -> list[str]:
    """Returns the first class of each item, one for each picture, or raises ValueError.

    With `bare`, an item can also be a label or an index alone.
    """
    if not answers:
        raise _no_class(answers)
    return [
        _failure(answer) or (_scalar(answer) if bare else None) or read_first_class(answer)
        for answer in answers
    ]


def read_first_class(answer: object) -> str:
    """Returns the most probable class in the answer to one picture, or raises ValueError.

    It has a label, labels with scores in any order, or scores in the order of the model's output.
    """
    found: str | None = None
    if isinstance(answer, dict):
        found = _in_members(answer)
        if found is None:
            return read_first_class(_unwrap(answer))
    elif isinstance(answer, list):
        found = _best(answer)
        if found is None and len(answer) == 1:  # a batch of one
            return read_first_class(answer[0])
    if found is None:
        raise _no_class(answer)
    return found


def highest(scores: Sequence[float]) -> int:
    """Returns the position of the highest score, the first of several; ValueError for NaN."""
    try:
        broken = math.isnan(sum(scores))  # the sum is NaN if one of them is
    except OverflowError:  # an integer beyond any float
        broken = True
    if broken:
        raise ValueError("a score is not a number")
    return scores.index(max(scores))


def are_scores(values: Iterable[object]) -> bool:
    """Whether all are numbers. Without a fraction they could as well be indices of classes."""
    return {float} <= set(map(type, values)) <= {int, float}


def _in_members(answer: Mapping[str, object]) -> str | None:
    label = _first_of(answer, _LABEL)
    if label is not None:
        return label

    labels = next((answer[key] for key in _LABELS if key in answer), None)
    scores = next((answer[key] for key in _SCORES if isinstance(answer.get(key), list)), None)
    if isinstance(labels, list) and len(labels) == 1:
        return _scalar(labels[0])
    if (found := _scalar(labels)) is not None:
        return found
    if not isinstance(scores, list) or len(scores) < 2 or not are_scores(scores):
        return None
    if labels is None:
        return str(highest(scores))
    if isinstance(labels, list) and len(labels) == len(scores):
        return _scalar(labels[highest(scores)])
    return None


def _best(items: Sequence[Any]) -> str | None:
    # None if these are not one picture's classes.
    if len(items) > 1 and are_scores(items):
        return str(highest(items))

    labels, scores = _labels_and_scores(items)
    if not labels or None in labels or not {*map(type, scores)} <= {int, float}:
        return None
    return labels[highest(scores)]


def _labels_and_scores(items: Sequence[Any]) -> tuple[list[str | None], list[Any]]:
    try:  # convserve's own names, five times as fast as looking for others
        labels = [item["label"] for item in items]
        scores = [item["probability"] for item in items]
    except (KeyError, TypeError):
        labels = scores = []
    if {*map(type, labels)} == {str}:
        return labels, scores

    pairs = [_pair(item) for item in items]
    return [label for label, _ in pairs], [score for _, score in pairs]


def _pair(item: object) -> tuple[str | None, Any]:
    if isinstance(item, dict):
        label = _first_of(item, _LABEL)
        return label, next((item[key] for key in _SCORE if key in item), None)
    if isinstance(item, list) and 2 <= len(item) <= 3 and isinstance(item[-2], str):
        return item[-2], item[-1]  # Keras puts the synset in front of the label
    return None, None


def _first_of(answer: Mapping[str, object], keys: Iterable[str]) -> str | None:
    for key in keys:
        if key in answer and (found := _scalar(answer[key])) is not None:
            return found
    return None


def _scalar(value: object) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _failure(answer: object) -> str | None:
    error = answer.get("error") if isinstance(answer, dict) else None
    if not error:
        return None
    code = error.get("code") if isinstance(error, dict) else None
    return f"{FAILED}{code or 'error'}"


def _unwrap(answer: Mapping[str, object]) -> object:
    inside = [answer[key] for key in _AROUND if isinstance(answer.get(key), (list, dict))]
    if len(inside) != 1:
        raise _no_class(answer)
    return inside[0]


def _no_class(answer: object) -> ValueError:
    return ValueError(f"no class in the answer {json.dumps(answer)[:200]}")

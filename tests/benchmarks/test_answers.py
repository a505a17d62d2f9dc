from __future__ import annotations

import json

import pytest

from benchmarks.answers import WrongAnswers, agreement, top5_indices

PREDICTIONS = [{"label": "a", "index": 7, "probability": 0.9}]


@pytest.mark.parametrize(
    "answer",
    [
        {"predictions": PREDICTIONS},
        [{"predictions": PREDICTIONS}],
        {"outputs": [{"data": [json.dumps(PREDICTIONS)]}]},
    ],
    ids=["plain", "batch of one", "v2"],
)
def test_top5_every_envelope_is_understood(answer):
    assert top5_indices(answer) == [7]


@pytest.mark.parametrize("answer", [{"detail": "no"}, [], None, {"predictions": [{}]}])
def test_top5_no_predictions_is_wrong(answer):
    with pytest.raises(WrongAnswers, match="no predictions"):
        top5_indices(answer)


def test_agreement_missing_answer_is_wrong():
    with pytest.raises(WrongAnswers, match="1 of 2 photos"):
        agreement({0: json.dumps({"predictions": PREDICTIONS})}, [[7], [7]])


def test_agreement_too_low_is_wrong():
    with pytest.raises(WrongAnswers, match=r"0\.0%"):
        agreement({0: json.dumps({"predictions": PREDICTIONS})}, [[8]])


def test_agreement_all_equal_is_100_percent():
    found = agreement({0: json.dumps({"predictions": PREDICTIONS})}, [[7]])

    assert (found.n, found.top1_percent, found.top5_percent) == (1, 100.0, 100.0)

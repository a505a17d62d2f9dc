"""Compares a real server's answers to odd pictures and requests with the committed table."""

from __future__ import annotations

import pytest

from tests.corpora.accepted import ACCEPTED
from tests.corpora.answers import ask_everything, differences, read_table

pytestmark = pytest.mark.e2e


@pytest.mark.corpora
@pytest.mark.timeout(300)  # 15 s alone on two cores, a minute on a busy machine
def test_corpora_answers_match_the_table():
    before = read_table()

    found = differences(before, ask_everything())

    assert {name: how for name, how in found.items() if name not in ACCEPTED} == {}


@pytest.mark.parametrize(
    ("now", "differs"),
    [
        ("200 blue=0.01 red=0.99", False),
        ("200 blue=0.02 red=0.98", False),
        ("200 blue=0.10 red=0.90", True),
        ("200 red=0.99", True),
        ("422 image_truncated", True),
    ],
    ids=["same", "rounded", "other-probability", "fewer-labels", "other-status"],
)
def test_differences_finds_another_answer_but_not_rounding(now, differs):
    found = differences({"a": ("200 blue=0.01 red=0.99",)}, {"a": (now,)})

    assert bool(found) == differs


def test_differences_finds_new_and_lost_cases():
    found = differences({"lost": ("200 -",)}, {"new": ("200 -",)})

    assert found == {"lost": "is gone", "new": "is new"}

import numpy as np
import pytest

from tests.training.helpers import tinynet
from training.data.samples import Sample
from training.report.guesses import (
    THUMBNAIL_PX,
    pick_drawn,
    pick_mistakes,
    pick_unsure,
    show_guess,
)

ANSWERS = np.array(
    [[0.9, 0.1], [0.2, 0.8], [0.95, 0.05], [0.4, 0.6], [0.55, 0.45]], dtype=np.float32
)


def test_pick_mistakes_gives_the_surest_wrong_answers_first():
    rows = pick_mistakes(ANSWERS, np.array([0, 0, 1, 1, 1]))

    assert rows == [2, 1, 4]


def test_pick_mistakes_stops_at_its_number():
    assert pick_mistakes(ANSWERS, np.array([0, 0, 1, 1, 1]), n=1) == [2]


def test_pick_mistakes_of_right_answers_is_empty():
    assert pick_mistakes(ANSWERS, ANSWERS.argmax(axis=1)) == []


def test_pick_drawn_draws_the_same_rows_for_a_seed():
    rows = pick_drawn(100)

    assert len(set(rows)) == 6
    assert rows == pick_drawn(100)
    assert rows != pick_drawn(100, seed=1)


def test_pick_drawn_of_few_pictures_takes_each_once():
    assert sorted(pick_drawn(3)) == [0, 1, 2]


def test_pick_unsure_gives_the_least_sure_first_without_excluded_rows():
    assert pick_unsure(ANSWERS) == [4, 3, 1, 0, 2]
    assert pick_unsure(ANSWERS, without=[3], n=2) == [4, 1]


@pytest.mark.parametrize(
    ("size", "shown"),
    [((400, 200), (THUMBNAIL_PX, THUMBNAIL_PX // 2)), ((10, 20), (10, 20))],
    ids=["large", "small"],
)
def test_show_guess_ranks_the_classes_and_reduces_the_picture(size, shown):
    sample = Sample("a", 1, data=tinynet.picture("red", size=size))

    guess = show_guess(sample, np.array([0.25, 0.75], dtype=np.float32))

    assert (guess.name, guess.index) == ("a", 1)
    assert guess.guesses == ((1, 0.75), (0, 0.25))
    assert guess.thumbnail.size == shown


def test_show_guess_names_five_classes_at_most():
    sample = Sample("a", 8, data=tinynet.picture("red"))

    guess = show_guess(sample, np.full(9, 1 / 9, dtype=np.float32))

    assert [index for index, _ in guess.guesses] == [0, 1, 2, 3, 4]

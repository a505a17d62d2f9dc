import numpy as np

from tests.training import tinynet
from training.data.samples import Sample
from training.report.guesses import (
    THUMBNAIL_PX,
    pick_drawn,
    pick_mistakes,
    pick_unsure,
    show_guesses,
)

SURE = np.array([[0.9, 0.1], [0.2, 0.8], [0.95, 0.05], [0.4, 0.6], [0.55, 0.45]], dtype=np.float32)


def test_pick_mistakes_gives_the_surest_wrong_answers_first():
    rows = pick_mistakes(SURE, np.array([0, 0, 1, 1, 1]))

    assert rows == [2, 1, 4]


def test_pick_mistakes_stops_at_its_number():
    assert pick_mistakes(SURE, np.array([0, 0, 1, 1, 1]), n=1) == [2]


def test_pick_mistakes_of_a_perfect_answer_is_empty():
    assert pick_mistakes(SURE, SURE.argmax(axis=1)) == []


def test_pick_drawn_draws_the_same_rows_for_a_seed():
    rows = pick_drawn(100)

    assert len(set(rows)) == 6
    assert rows == pick_drawn(100)
    assert rows != pick_drawn(100, seed=1)


def test_pick_drawn_of_few_pictures_takes_each_once():
    assert sorted(pick_drawn(3)) == [0, 1, 2]


def test_pick_unsure_gives_the_least_sure_first_and_no_row_that_is_shown_already():
    assert pick_unsure(SURE) == [4, 3, 1, 0, 2]
    assert pick_unsure(SURE, without=[3], n=2) == [4, 1]


def test_show_guesses_reads_labels_and_reduces_the_picture():
    samples = [
        Sample("a", 1, data=tinynet.picture("red", size=(400, 200))),
        Sample("b", 0, data=tinynet.picture("blue", size=(10, 20))),
    ]
    answers = np.array([[0.25, 0.75], [0.5, 0.5]], dtype=np.float32)

    first, second = show_guesses(samples, answers, [1, 0])

    assert (first.name, first.index, first.thumbnail.size) == ("b", 0, (10, 20))
    assert (second.name, second.guesses) == ("a", ((1, 0.75), (0, 0.25)))
    assert second.thumbnail.size == (THUMBNAIL_PX, THUMBNAIL_PX // 2)


def test_show_guesses_names_five_classes_at_most():
    answers = np.full((1, 9), 1 / 9, dtype=np.float32)

    (guess,) = show_guesses([Sample("a", 8, data=tinynet.picture("red"))], answers, [0])

    assert [index for index, _ in guess.guesses] == [0, 1, 2, 3, 4]

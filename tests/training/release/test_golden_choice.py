import numpy as np

from tests.training import tinynet
from training.data.samples import Sample
from training.release.golden_choice import choose_surest


def sample(colour, number):
    index = tinynet.NAMES.index(colour)
    return Sample(f"{colour}{number}", index, data=tinynet.picture(colour, number))


def test_surest_pictures_of_each_class_come_in_turn_and_wrong_ones_never():
    samples = [sample("red", 0), sample("red", 1), sample("green", 2), sample("blue", 3)]
    rows = [[0.8, 0.1, 0.1], [0.9, 0.1, 0.0], [0.3, 0.6, 0.1], [0.7, 0.2, 0.1]]
    answers = np.array(rows, dtype=np.float32)

    chosen = choose_surest(samples, tinynet.labels(), answers, 3)

    assert [picture.name for picture in chosen] == ["00-red.png", "01-green.png", "02-red.png"]
    assert [picture.data for picture in chosen] == [samples[i].data for i in (1, 2, 0)]


def test_surest_pictures_of_nothing_known_are_none():
    wrong = np.array([[0.1, 0.9, 0.0]], dtype=np.float32)

    assert choose_surest([sample("red", 0)], tinynet.labels(), wrong, 3) == []

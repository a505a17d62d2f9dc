import numpy as np
import pytest

from training.evaluation import classes


def test_class_measures_equal_the_definitions():
    first, second = classes.class_measures(np.array([[8, 2], [4, 6]]))

    assert first == classes.ClassMeasure(8 / 12, 0.8, pytest.approx(16 / 22), 10)  # type: ignore[arg-type]
    assert second == classes.ClassMeasure(0.75, 0.6, pytest.approx(12 / 18), 10)  # type: ignore[arg-type]


def test_class_measures_of_an_absent_class_are_zero():
    found = classes.class_measures(np.array([[3, 0], [0, 0]]))

    assert found[1] == classes.ClassMeasure(0.0, 0.0, 0.0, 0)


def test_most_confused_sorts_by_frequency_and_then_by_index():
    confusion = np.array([[9, 1, 0], [4, 9, 1], [0, 0, 9]])

    assert classes.most_confused(confusion) == [(1, 0, 4), (0, 1, 1), (1, 2, 1)]
    assert classes.most_confused(confusion, n=1) == [(1, 0, 4)]


def test_average_leaves_out_classes_without_pictures():
    found = classes.class_measures(np.array([[3, 0, 0], [0, 1, 1], [0, 0, 0]]))

    macro = classes.average(found, weighted=False)
    weighted = classes.average(found, weighted=True)

    assert macro.recall == pytest.approx((1 + 0.5) / 2)
    assert weighted.recall == pytest.approx((3 * 1 + 2 * 0.5) / 5)
    assert macro.support == weighted.support == 5

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from contract.scores import softmax, top_k

LOGITS = npst.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 20)),
    elements=st.floats(-1e4, 1e4, width=32),
)
ROW = npst.arrays(np.float32, st.integers(1, 30), elements=st.floats(0, 1, width=32))


@given(LOGITS, st.floats(0.05, 20))
def test_softmax_rows_are_finite_and_sum_to_one(logits, temperature):
    probabilities = softmax(logits, temperature)

    assert probabilities.dtype == np.float32
    assert probabilities.shape == logits.shape
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


@given(LOGITS)
def test_softmax_keeps_the_order(logits):
    probabilities = softmax(logits)

    order = np.argsort(logits, axis=-1, kind="stable")
    assert (np.diff(np.take_along_axis(probabilities, order, -1)) >= 0).all()


@given(LOGITS, st.floats(-1e4, 1e4))
def test_softmax_is_invariant_to_adding_a_constant(logits, constant):
    shifted = logits.astype(np.float64) + constant

    np.testing.assert_allclose(softmax(shifted), softmax(logits), atol=1e-6)


@pytest.mark.parametrize("logits", [[-100, 10], [-60, 30, 5], [1e4, -1e4], [-1e4, -1e4]])
def test_softmax_large_negative_logits_stay_finite(logits):
    """Shifting by the value of the largest size instead of the maximum gives NaN here."""
    probabilities = softmax(np.array(logits, np.float32))

    assert np.isfinite(probabilities).all()
    assert probabilities.argmax() == int(np.argmax(logits))


def test_softmax_known_values():
    np.testing.assert_allclose(softmax(np.log([1.0, 2.0, 5.0])), [0.125, 0.25, 0.625], rtol=1e-6)


def test_softmax_temperature_flattens_and_sharpens():
    logits = np.array([1.0, 0.0])

    assert softmax(logits, 2.0)[0] < softmax(logits)[0] < softmax(logits, 0.5)[0]


def test_softmax_does_not_change_its_input():
    logits = np.array([3.0, 1.0])

    softmax(logits, 2.0)

    assert list(logits) == [3.0, 1.0]


@given(ROW, st.integers(0, 40))
def test_top_k_is_the_sorted_head(probabilities, k):
    pairs = top_k(probabilities, k)

    expected = sorted(enumerate(probabilities.tolist()), key=lambda pair: (-pair[1], pair[0]))
    assert pairs == expected[:k]


def test_top_k_ties_go_by_index():
    assert [index for index, _ in top_k(np.full(4, 0.25, np.float32), 3)] == [0, 1, 2]


@pytest.mark.parametrize("k", [3, 4, 1000])
def test_top_k_more_than_there_are_means_all(k):
    assert len(top_k(np.array([0.2, 0.5, 0.3], np.float32), k)) == 3


@pytest.mark.parametrize("k", [0, -1])
def test_top_k_none_asked_is_empty(k):
    assert top_k(np.array([0.5, 0.5], np.float32), k) == []


@pytest.mark.parametrize(("least", "n"), [(0.0, 3), (0.25, 2), (0.26, 1), (0.9, 0)])
def test_top_k_minimum_is_inclusive(least, n):
    probabilities = np.array([0.5, 0.25, 0.125], np.float32)

    assert len(top_k(probabilities, 3, least)) == n


def test_top_k_gives_plain_numbers():
    [(index, probability)] = top_k(np.array([1.0], np.float32), 1)

    assert (type(index), type(probability)) == (int, float)

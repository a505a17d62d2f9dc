import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from training.export.weights.pairs import bound_pairs, cap_second, pairs_hold

weights_in_steps = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    elements=st.floats(-400, 400, allow_nan=False),
)


@pytest.mark.parametrize(
    ("weights", "hold"),
    [
        ([127, 1], True),
        ([64, 64], True),
        ([127, 2], False),
        ([-65, -64], False),
        ([127, -127], True),  # opposite signs cannot saturate
        ([1, 127, 127, 1], True),  # (127, 127) is no pair
        ([-128, 0], False),
        ([100, 0, 127], True),  # the last one has no neighbour
    ],
)
def test_pairs_of_one_sign_sum_to_128_at_most(weights, hold):
    assert pairs_hold(np.array([weights], dtype=np.int8)) is hold


def test_the_bound_is_what_fits_into_16_bits():
    assert 255 * 128 <= np.iinfo(np.int16).max < 255 * 129


@given(weights_in_steps)
def test_bounded_weights_keep_the_bound_and_their_signs(weights):
    bounded = bound_pairs(weights)

    assert pairs_hold(np.trunc(bounded).astype(np.int8))
    assert (bounded * weights >= 0).all()
    assert (np.abs(bounded) <= np.abs(weights)).all()


def test_both_weights_of_a_large_pair_move_by_the_same_amount():
    np.testing.assert_array_equal(bound_pairs(np.array([[100.0, 40.0, 3.0]])), [[94.0, 34.0, 3.0]])


@given(st.integers(-127, 127), st.floats(-400, 400))
def test_a_capped_second_weight_keeps_the_bound(first, second):
    capped = cap_second(np.array([second]), np.array([float(first)]))

    assert pairs_hold(np.array([first, int(capped[0])], dtype=np.int8))

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.export.weights.pairs import pairs_hold
from training.export.weights.rounding import choose_scales, input_correlation, round_weights


def _layer(seed, groups=1, outputs=8, n_weights=24, rows=2000):
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(n_weights, n_weights))  # correlated inputs, as real ones are
    inputs = np.maximum(generator.normal(size=(groups, rows, n_weights)) @ mixing + 2.0, 0)
    weights = generator.normal(size=(groups, outputs, n_weights))
    return inputs.astype(np.float32), weights


def _rounded(inputs, weights, *, depthwise=False, least=0.0):
    correlation = input_correlation(inputs)
    least = np.full(weights.shape[:2], least)
    scales = choose_scales(weights, correlation, least, depthwise=depthwise)
    return round_weights(weights, scales, correlation, depthwise=depthwise), scales


def _output_error(inputs, weights, stored):
    difference = np.matmul(inputs, (weights - stored).transpose(0, 2, 1))
    return float((difference**2).mean())


def test_outputs_are_closer_than_with_each_weight_rounded_by_itself():
    ours, plain = 0.0, 0.0
    for seed in range(5):
        inputs, weights = _layer(seed)
        rounded, scales = _rounded(inputs, weights)
        ours += _output_error(inputs, weights, rounded * scales[..., None])

        plain_scales = np.abs(weights).max(axis=2, keepdims=True) / 64  # 7 bits also keep the bound
        plain += _output_error(inputs, weights, np.rint(weights / plain_scales) * plain_scales)

    assert ours < 0.5 * plain


@given(st.integers(0, 1000), st.sampled_from([(1, 3, 27), (1, 5, 2), (1, 2, 1), (4, 2, 9)]))
@settings(max_examples=40, deadline=None)
def test_no_pair_exceeds_the_bound(seed, shape):
    groups, outputs, n_weights = shape
    inputs, weights = _layer(seed, groups, outputs, n_weights, rows=50)

    rounded, _ = _rounded(inputs, weights)

    assert pairs_hold(rounded)


def test_weights_of_one_sign_keep_the_bound_across_blocks():
    inputs, weights = _layer(0, n_weights=301)  # more than two blocks, and an odd number

    rounded, _ = _rounded(inputs, np.abs(weights))

    assert pairs_hold(rounded)


def test_depthwise_weights_use_all_eight_bits():
    inputs, weights = _layer(1, groups=16, outputs=1, n_weights=9)

    rounded, _ = _rounded(inputs, np.abs(weights), depthwise=True)

    assert np.abs(rounded.astype(int)).max() > 64
    assert not pairs_hold(rounded)


def test_no_scale_is_below_the_least():
    inputs, weights = _layer(2)

    _, scales = _rounded(inputs, weights, least=0.5)

    assert (scales >= 0.5).all()


def test_inputs_that_are_always_zero_are_no_error():
    inputs, weights = _layer(3)
    inputs[..., 5] = 0
    nothing = np.zeros_like(inputs)

    assert pairs_hold(_rounded(inputs, weights)[0])
    assert pairs_hold(_rounded(nothing, weights)[0])


def test_weights_that_are_all_zero_stay_zero():
    inputs, weights = _layer(4)

    rounded, scales = _rounded(inputs, np.zeros_like(weights))

    assert not rounded.any()
    assert (scales > 0).all()

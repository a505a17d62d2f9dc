import numpy as np
import pytest

from training.export.weights.bias import correct_bias


def _relu6(values):
    return np.clip(values, 0, 6)


def test_a_linear_layer_gets_back_its_mean():
    exact = np.array([[1.0, 5.0], [3.0, 5.0]], dtype=np.float32)
    quantized = np.array([[1.5, 4.0], [3.5, 4.0]], dtype=np.float32)

    np.testing.assert_allclose(correct_bias(exact, quantized, None), [-0.5, 1.0])


def test_the_mean_after_a_clip_is_kept_not_the_one_before():
    exact = np.array([[-9.0], [-9.0], [2.0], [4.0]], dtype=np.float32)
    quantized = np.array([[-1.0], [-1.0], [2.5], [4.5]], dtype=np.float32)  # mean 1.25, not -3

    shift = correct_bias(exact, quantized, _relu6)

    assert _relu6(quantized + shift).mean() == pytest.approx(_relu6(exact).mean(), abs=0.02)
    assert shift[0] == pytest.approx(-0.5, abs=0.05)


def test_a_channel_that_is_always_clipped_is_left_alone():
    exact, quantized = np.full((4, 1), -3.0, np.float32), np.full((4, 1), -5.0, np.float32)

    assert correct_bias(exact, quantized, _relu6)[0] == 0

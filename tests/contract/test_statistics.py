from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from contract.preprocessing import to_input
from contract.statistics import N_BINS, histogram, picture_statistics, reference_statistics
from tests import tinymodel


def manifest(tmp_path, kind):
    return tinymodel.write_version(tmp_path, kind=kind)


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_picture_statistics_of_both_inputs_are_of_the_pixels(tmp_path, kind):
    model = manifest(tmp_path, kind)
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = (255, 0, 51)

    found = picture_statistics(to_input(Image.fromarray(pixels), model), model)

    np.testing.assert_allclose(found.mean, [0.5, 0, 0.1], atol=1e-6)
    np.testing.assert_allclose(found.mean_square, [0.5, 0, 0.02], atol=1e-6)
    assert found.brightness == pytest.approx(0.5 * 0.299 + 0.1 * 0.114, abs=1e-6)


def test_picture_statistics_undo_the_normalisation():
    model = SimpleNamespace(
        graph=SimpleNamespace(input=SimpleNamespace(layout="NCHW")),
        preprocessing=SimpleNamespace(in_graph=False, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2)),
    )
    row = np.zeros((3, 2, 2), np.float32)

    np.testing.assert_allclose(picture_statistics(row, model).mean, [0.5, 0.4, 0.3])


def test_reference_statistics_count_every_picture_once(tmp_path):
    model = manifest(tmp_path, "uint8")
    black, white = (np.full((8, 8, 3), value, np.uint8) for value in (0, 255))
    inputs = [picture_statistics(row, model) for row in (black, white, white)]
    probabilities = np.array([[0.9, 0.1, 0], [0.2, 0.1, 0.7], [1, 0, 0]], np.float32)

    found = reference_statistics(inputs, probabilities, "made up")

    assert (found.n_images, found.first_class) == (3, (2, 0, 1))
    assert found.channel_mean == pytest.approx((2 / 3, 2 / 3, 2 / 3), abs=1e-4)
    assert found.channel_std == pytest.approx((2**0.5 / 3,) * 3, abs=1e-4)
    assert (found.brightness[0], found.brightness[-1]) == (1, 2)
    assert sum(found.confidence) == 3
    assert found.confidence[-1] == 1


def test_histogram_has_equal_bins_and_counts_the_ends():
    values = np.array([0, 0.049, 0.051, 0.999, 1, 1.2, -0.1])

    counts = histogram(values)

    assert len(counts) == N_BINS
    assert (counts[0], counts[1], counts[-1]) == (3, 1, 3)

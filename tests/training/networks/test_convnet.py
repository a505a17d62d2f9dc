"""ConvNet, with the worked examples of a classic introduction to CNNs on its own layers."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from training.evaluation.session import open_session
from training.export.export import INPUT as INPUT_NAME
from training.export.export import check_batches, export
from training.networks.architectures import PixelsToProbabilities, preprocessing_of
from training.networks.convnet import (
    ConvNet,
    ConvNetOptions,
    convolution,
    default_widths,
    max_pooling,
)
from training.system.torch_compat import prepare_torchvision

INPUT = [
    [0, 0, 0, 0, 0, 0, 0],
    [0, 1, 0, 0, 0, 1, 0],
    [0, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 1, 0, 0, 0],
    [0, 1, 0, 0, 0, 1, 0],
    [0, 0, 1, 1, 1, 0, 0],
    [0, 0, 0, 0, 0, 0, 0],
]
DETECTOR = [[0, 0, 1], [1, 0, 0], [0, 1, 1]]
FEATURE_MAP = [
    [0, 1, 0, 0, 0],
    [0, 1, 1, 1, 0],
    [1, 0, 0, 2, 1],
    [1, 4, 2, 1, 0],
    [0, 0, 1, 2, 1],
]
POOLED = [[1, 1, 0], [4, 2, 1], [0, 2, 1]]

SHARPEN = [[0, -1, 0], [-1, 5, -1], [0, -1, 0]]
BLUR = [[1 / 9] * 3] * 3
EDGES = [[0, 1, 0], [1, -4, 1], [0, 1, 0]]

SMALL = ConvNetOptions(widths=(2, 3), hidden=(5,))


def picture(rows):
    return torch.tensor(rows, dtype=torch.float32)[None, None]  # (1, 1, H, W)


def convolution_with(kernel, padding=0):
    """Returns one of the network's convolutions with the given kernel."""
    layer = convolution(1, 1, padding=padding, bias=False)
    with torch.no_grad():
        layer.weight.copy_(picture(kernel))
    return layer


def run(layer, image):
    with torch.inference_mode():
        return layer(image)[0, 0].numpy()


def test_convolution_of_the_worked_example_gives_its_feature_map():
    assert run(convolution_with(DETECTOR), picture(INPUT)).tolist() == FEATURE_MAP


def test_padded_convolution_keeps_the_size_and_the_inner_values():
    padded = run(convolution_with(DETECTOR, padding=1), picture(INPUT))

    assert padded.shape == (7, 7)
    assert padded[1:-1, 1:-1].tolist() == FEATURE_MAP


def test_max_pooling_includes_partial_windows():
    assert run(max_pooling(), picture(FEATURE_MAP)).tolist() == POOLED


def test_first_block_of_a_network_pools_the_worked_examples_feature_map():
    network = ConvNet(2, 10, ConvNetOptions(grey=True, widths=(1,), hidden=())).eval()
    with torch.no_grad():
        network.get_parameter("blocks.0.0.weight").copy_(picture(DETECTOR))
    # One pixel in from the corner, so that the feature map starts at a pooling window.
    image = functional.pad(picture(INPUT), (1, 2, 1, 2)).expand(1, 3, 10, 10)

    pooled = run(network.forward_features, image)  # (5, 5)

    np.testing.assert_allclose(pooled[1:3, 1:3], np.array(POOLED)[:2, :2], atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        pytest.param(SHARPEN, [2, 1, 4, 3], id="sharpen-exaggerates-a-step"),
        pytest.param(BLUR, [2, 7 / 3, 8 / 3, 3], id="blur-flattens-a-step"),
        pytest.param(EDGES, [0, 1, -1, 0], id="edges-are-all-that-is-left"),
    ],
)
def test_image_filter_on_a_step_of_brightness(kernel, expected):
    step = picture([[2, 2, 2, 3, 3, 3]] * 3)

    np.testing.assert_allclose(run(convolution_with(kernel), step), [expected], atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=6),
    st.sampled_from((0.0, 1000.0, -1000.0)),
)
def test_softmax_of_any_logits_sums_to_one_and_keeps_their_order(logits, constant):
    network = ConvNet(len(logits), 8, ConvNetOptions(widths=(1,), hidden=()))
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.classifier.bias.copy_(torch.tensor(logits) + constant)
    whole = PixelsToProbabilities(network, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).eval()

    with torch.inference_mode():
        probabilities, given_logits, *_ = whole(torch.zeros((1, 8, 8, 3), dtype=torch.uint8))

    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    order = torch.argsort(given_logits, stable=True)
    assert (torch.diff(probabilities.gather(1, order)) >= 0).all()
    torch.testing.assert_close(
        probabilities, torch.softmax(torch.tensor([logits]), dim=1), atol=2e-3, rtol=0
    )


def test_probabilities_of_two_classes_add_up_to_one():
    network = ConvNet(2, 8, SMALL)
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.classifier.bias.copy_(torch.tensor([0.95, 0.05]).log())
    whole = PixelsToProbabilities(network, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).eval()

    with torch.inference_mode():
        probabilities = whole(torch.zeros((1, 8, 8, 3), dtype=torch.uint8))[0]

    assert probabilities[0].tolist() == pytest.approx([0.95, 0.05])


@pytest.mark.parametrize("grey", [pytest.param(True, id="grey"), pytest.param(False, id="colour")])
@pytest.mark.parametrize("side", [8, 9, 15, 33])
def test_network_of_any_size_gives_logits_and_embedding(side, grey):
    network = ConvNet(4, side, ConvNetOptions(grey=grey, widths=(2, 3), hidden=(7, 5)))
    images = torch.zeros(2, 3, side, side)

    maps = network.forward_features(images)

    assert maps.shape == (2, 3, -(-side // 4), -(-side // 4))
    assert network.forward_head(maps, pre_logits=True).shape == (2, 5)
    torch.testing.assert_close(network.forward_head(maps), network(images))


def test_grey_network_sees_brightness_only():
    network = ConvNet(3, 8, ConvNetOptions(grey=True, widths=(2,))).eval()
    colour = torch.tensor([1.0, -0.5, 0.2]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    luma = 0.299 * 1.0 + 0.587 * -0.5 + 0.114 * 0.2

    with torch.inference_mode():
        torch.testing.assert_close(network(colour), network(torch.full((1, 3, 8, 8), luma)))


def test_colour_network_distinguishes_colours_of_equal_brightness():
    torch.manual_seed(0)
    network = ConvNet(3, 8, ConvNetOptions(widths=(4,))).eval()
    pink = torch.tensor([0.3, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    grey = torch.full((1, 3, 8, 8), 0.3 * 0.299)

    with torch.inference_mode():
        assert not torch.allclose(network(pink), network(grey), atol=1e-3)


def test_options_decide_the_layers():
    network = ConvNet(
        3, 16, ConvNetOptions(widths=(4, 6), convolutions=2, batch_norm=True, drop_rate=0.5)
    )

    kinds = [type(layer).__name__ for layer in network.get_submodule("blocks.1").children()]
    assert kinds == [*(["Conv2d", "BatchNorm2d", "ReLU"] * 2), "MaxPool2d"]
    assert network.get_parameter("blocks.1.3.weight").shape == (6, 6, 3, 3)
    assert "blocks.1.3.bias" not in dict(network.named_parameters())
    assert network.get_submodule("full.0.2").p == 0.5


@pytest.mark.parametrize(
    ("side", "widths"),
    [(8, (32, 64)), (32, (32, 64)), (33, (32, 64, 128)), (224, (32, 64, 128, 256, 256))],
)
def test_default_widths_reduce_the_feature_maps_to_eight_pixels(side, widths):
    assert default_widths(side) == widths


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"widths": ()}, id="no-block"),
        pytest.param({"widths": (8, 0)}, id="no-feature-map"),
        pytest.param({"convolutions": 0}, id="no-convolution"),
        pytest.param({"hidden": (0,)}, id="no-unit"),
        pytest.param({"drop_rate": 1.0}, id="all-dropped"),
    ],
)
def test_invalid_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ConvNetOptions(**options)


def test_input_below_eight_pixels_is_refused():
    with pytest.raises(ValueError, match="8 x 8 pixels or more"):
        ConvNet(2, 7, SMALL)


def test_reset_classifier_changes_the_number_of_classes_only():
    network = ConvNet(3, 8, SMALL)
    before = network.get_parameter("blocks.0.0.weight").clone()

    network.reset_classifier(6)

    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 6)
    torch.testing.assert_close(network.get_parameter("blocks.0.0.weight"), before)
    with pytest.raises(ValueError, match="pools nothing"):
        network.reset_classifier(6, "avg")


def test_preprocessing_of_the_network_is_its_size_without_a_margin():
    spec = preprocessing_of(ConvNet(3, 24, SMALL))

    assert (spec.resize_size_px, spec.crop_size_px) == (24, 24)
    assert (spec.mean, spec.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def timm_optim():
    prepare_torchvision()
    return importlib.import_module("timm.optim")


def test_timms_layer_decay_lowers_the_rate_of_lower_layers():
    network = ConvNet(3, 8, SMALL)

    groups = timm_optim().param_groups_layer_decay(network, layer_decay=0.5)

    scales = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    found = {name: scales[id(parameter)] for name, parameter in network.named_parameters()}
    assert found["blocks.0.0.weight"] == 0.125
    assert found["blocks.1.0.weight"] == 0.25
    assert found["full.0.0.weight"] == 0.5
    assert found["classifier.weight"] == 1.0


def bars(n, seed):
    """Returns horizontal (0) and vertical (1) bars at random places."""
    generator = torch.Generator().manual_seed(seed)
    images, indexes = torch.full((n, 3, 8, 8), -1.0), torch.arange(n) % 2
    for image, index, at in zip(
        images, indexes, torch.randint(8, (n,), generator=generator), strict=True
    ):
        if index:
            image[:, :, at] = 1.0
        else:
            image[:, at] = 1.0
    return images, indexes


def test_network_learns_bars_by_backpropagation():
    torch.manual_seed(0)
    network = ConvNet(2, 8, ConvNetOptions(grey=True, widths=(4,), hidden=(8,), batch_norm=True))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    images, indexes = bars(64, seed=1)

    for _ in range(40):
        optimizer.zero_grad()
        functional.cross_entropy(network(images), indexes).backward()
        optimizer.step()

    images, indexes = bars(64, seed=2)
    with torch.inference_mode():
        assert (network.eval()(images).argmax(dim=1) == indexes).all()


def test_exported_network_of_odd_size_answers_as_torch():
    """9 pixels are pooled to 5 and 3, so that the graph must pool partial windows too."""
    torch.manual_seed(0)
    network = ConvNet(
        3, 9, ConvNetOptions(widths=(2, 3), hidden=(4,), batch_norm=True, drop_rate=0.2)
    )
    spec = preprocessing_of(network.eval())
    whole = PixelsToProbabilities(network, spec.mean, spec.std).eval()

    graph = export(whole, 9)

    assert check_batches(graph, whole, 9, (1, 2, 7)) < 1e-5
    pixels = np.zeros((3, 9, 9, 3), dtype=np.uint8)
    assert open_session(graph).run(["embedding"], {INPUT_NAME: pixels})[0].shape == (3, 4)

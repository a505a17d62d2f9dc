import numpy as np
import pytest
import torch
from torch import nn

from tests.training.helpers import tinynet
from training.evaluation.session import open_session
from training.export.classifier import linear_classifier
from training.export.describe import describe_export
from training.export.export import INPUT, export
from training.networks.architectures import feature_layout
from training.networks.convnet import ConvNet, ConvNetOptions

SIDE_PX = tinynet.SIDE_PX


class ChannelsLast(tinynet.TinyNet):
    """Has its feature map as (N, s, s, K), as timm's swin transformers do."""

    output_fmt = "NHWC"

    def forward_features(self, x):
        return super().forward_features(x).permute(0, 2, 3, 1)

    def forward_head(self, x, pre_logits=False):
        return super().forward_head(x.permute(0, 3, 1, 2), pre_logits)


class WithNorm(tinynet.TinyNet):
    """Normalises the pooled features, as ConvNeXt does."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward_head(self, x, pre_logits=False):
        pooled = self.norm(self.pool(x).flatten(1))
        return pooled if pre_logits else self.classifier(pooled)


class WithHidden(tinynet.TinyNet):
    """Has a layer between the pooling and the classifier, as MobileNetV3 does."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(6, 9)
        self.classifier = nn.Linear(9, 3)

    def forward_head(self, x, pre_logits=False):
        hidden = self.hidden(self.pool(x).flatten(1))
        return hidden if pre_logits else self.classifier(hidden)


class WithTwoClassifiers(tinynet.TinyNet):
    def get_classifier(self):
        return self.classifier, self.classifier


class WithTokens(tinynet.TinyNet):
    """Has no positions: its features are (N, K, s * s)."""

    def forward_features(self, x):
        return super().forward_features(x).flatten(2)

    def forward_head(self, x, pre_logits=False):
        pooled = x.mean(2)
        return pooled if pre_logits else self.classifier(pooled)


@pytest.mark.parametrize("network", [tinynet.TinyNet(), ChannelsLast()], ids=["NCHW", "NHWC"])
def test_weights_and_feature_map_of_the_graph_give_its_logits(network):
    network = network.eval()
    graph = export(tinynet.wrapped(network), SIDE_PX)
    described = describe_export(graph, feature_layout(network))
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE_PX, SIDE_PX, 3), dtype=np.uint8)

    weights = linear_classifier(network, SIDE_PX)

    features, logits = open_session(graph).run(["feature_map", "logits"], {INPUT: pixels})
    output = described.output_of("feature_map")
    assert output is not None
    pooled = features.mean((2, 3) if output.layout == "NCHW" else (1, 2))  # (N, D)
    assert weights is not None
    assert weights.weight.shape == (3, 6)
    np.testing.assert_allclose(pooled @ weights.weight.T + weights.bias, logits, atol=1e-4)


def test_classifier_without_a_bias_has_a_bias_of_zero():
    network = tinynet.TinyNet()
    network.classifier = nn.Linear(6, 3, bias=False)

    weights = linear_classifier(network.eval(), SIDE_PX)

    assert weights is not None
    assert weights.bias.tolist() == [0, 0, 0]


def test_weights_are_a_copy():
    network = tinynet.TinyNet().eval()
    weights = linear_classifier(network, SIDE_PX)
    assert weights is not None
    before = weights.weight.copy()

    with torch.no_grad():
        network.classifier.weight.zero_()

    np.testing.assert_array_equal(weights.weight, before)


OTHERS = {
    "norm": WithNorm(),
    "hidden": WithHidden(),
    "two": WithTwoClassifiers(),
    "tokens": WithTokens(),
    "flattened": ConvNet(3, SIDE_PX, ConvNetOptions(widths=(4, 6), hidden=())),
}


@pytest.mark.parametrize("network", OTHERS.values(), ids=OTHERS)
def test_network_that_is_not_linear_in_pooled_features_has_no_weights(network):
    assert linear_classifier(network.eval(), SIDE_PX) is None


def test_graph_of_features_without_positions_has_no_feature_map():
    graph = export(tinynet.wrapped(WithTokens().eval()), SIDE_PX)

    kinds = [output.kind for output in describe_export(graph).outputs]
    assert kinds == ["probabilities", "logits", "embedding"]

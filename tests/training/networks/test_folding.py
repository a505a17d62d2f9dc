import pytest
import torch
from torch import nn

from training.config.config import Network
from training.errors import ArchitectureRefused
from training.networks.architectures import create
from training.networks.folding import fold_batch_norms


def with_random_statistics(network):
    """Sets the batch norms to random statistics, unlike those of a new network."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low in ((module.running_mean, -0.5), (module.running_var, 0.5)):
                assert value is not None
                value.copy_(low + torch.rand(value.shape, generator=generator))
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
    return network.eval()


def count_batch_norms(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("architecture", "options", "remaining"),
    [
        ("tf_efficientnet_lite0", {}, 0),
        ("mobilenetv3_small_050", {}, 0),
        ("resnet10t", {}, 0),
        ("convnet", {"batch_norm": True}, 0),
    ],
)
def test_folded_network_gives_the_same_answers_without_batch_norms(
    architecture, options, remaining
):
    network = with_random_statistics(
        create(Network(architecture=architecture, input_size_px=32, options=options), 5)
    )
    before_norms = count_batch_norms(network)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        before = network(images)

    folded = fold_batch_norms(network, 32)

    with torch.inference_mode():
        assert torch.allclose(
            network(images), before, rtol=1e-3, atol=1e-3 * float(before.abs().max())
        )
    assert folded == before_norms > 0
    assert count_batch_norms(network) == remaining


def test_folded_network_has_gradients_in_every_layer():
    network = create(Network(architecture="tf_efficientnet_lite0", input_size_px=32), 5)
    fold_batch_norms(network, 32)

    network(torch.randn(2, 3, 32, 32)).square().sum().backward()

    assert all(value.grad is not None for value in network.parameters())
    assert all(value.requires_grad for value in network.parameters())


class Shared(nn.Module):
    """One convolution whose output goes into two batch norms."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, images):
        features = self.conv(images)
        return (self.one(features) + self.two(features)).mean((2, 3))


def test_convolution_with_two_batch_norms_is_not_folded():
    network = with_random_statistics(Shared())

    assert fold_batch_norms(network, 16) == 0
    assert count_batch_norms(network) == 2


class UsedTwice(Shared):
    """A convolution whose output is used with and without its batch norm."""

    def forward(self, images):
        features = self.conv(images)
        return (self.one(features) + features).mean((2, 3))


def test_network_that_answers_differently_when_folded_is_refused():
    with pytest.raises(ArchitectureRefused, match="fold_batch_norm = false"):
        fold_batch_norms(with_random_statistics(UsedTwice()), 16)

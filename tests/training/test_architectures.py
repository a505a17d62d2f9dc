import pytest
import torch
from torch import nn

from tests.training import networks
from training import architectures
from training.errors import ArchitectureRefused
from training.torch_compat import timm


def config(**changes):
    network = networks.TinyNet()
    network.pretrained_cfg = {**network.pretrained_cfg, **changes}
    return network


def test_create_takes_the_number_of_classes():
    networks.register()

    network = architectures.create(networks.ARCHITECTURE, 5)

    assert not network.training
    assert network.get_classifier().out_features == 5  # type: ignore[operator]


def test_create_unknown_architecture_is_refused_with_suggestions():
    with pytest.raises(ArchitectureRefused, match="did you mean tf_efficientnet_lite0"):
        architectures.create("tf_efficientnet_lite00")


def test_create_without_a_likeness_suggests_nothing():
    with pytest.raises(ArchitectureRefused, match=r"timm has no architecture 'zzzzzzzz'$"):
        architectures.create("zzzzzzzz")


def test_create_that_timm_fails_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("No pretrained weights exist\nfor this")

    monkeypatch.setattr(timm(), "create_model", fail)

    with pytest.raises(ArchitectureRefused, match=r"resnet18: No pretrained weights exist$"):
        architectures.create("resnet18", weights_from_hub=True)


def test_preprocessing_of_tiny_is_its_config():
    assert architectures.preprocessing_of(networks.TinyNet()) == networks.spec()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"input_size": (1, 32, 32)}, "not a RGB square", id="grey"),
        pytest.param({"input_size": (3, 32, 48)}, "not a RGB square", id="oblong"),
        pytest.param({"crop_mode": "border"}, "crop mode 'border'", id="crop-mode"),
        pytest.param({"interpolation": "random"}, "interpolation 'random'", id="interpolation"),
    ],
)
def test_preprocessing_without_an_equal_in_the_contract_is_refused(changes, message):
    with pytest.raises(ArchitectureRefused, match=message):
        architectures.preprocessing_of(config(**changes))


def test_pooling_is_rewritten_in_a_copy_only():
    network = networks.TinyNet().eval()
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)

    wrapped = networks.wrapped(network)

    assert isinstance(network.pool, nn.AdaptiveAvgPool2d)
    assert not isinstance(wrapped.network.pool, nn.AdaptiveAvgPool2d)
    assert wrapped(pixels)[2].shape == (2, 6)

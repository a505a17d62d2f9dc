import pytest
import torch
from torch import nn

from contract.preprocessing import reference_pixels
from tests.pictures import photo
from tests.training.helpers import tinynet
from training.config.config import Network
from training.errors import ArchitectureRefused
from training.networks import architectures
from training.networks.convnet import ConvNet
from training.system.torch_compat import timm


def network_with_config(**changes):
    network = tinynet.TinyNet()
    network.pretrained_cfg = {**network.pretrained_cfg, **changes}
    return network


def create(architecture, n_classes=None, **choices):
    return architectures.create(Network(architecture=architecture, **choices), n_classes)


def test_create_takes_the_number_of_classes():
    tinynet.register()

    network = create(tinynet.ARCHITECTURE, 5)

    assert not network.training
    assert network.get_classifier().out_features == 5


def test_create_refuses_an_unknown_architecture_with_suggestions():
    with pytest.raises(ArchitectureRefused, match="did you mean tf_efficientnet_lite0"):
        create("tf_efficientnet_lite00")


def test_create_without_a_similar_name_says_where_all_are():
    with pytest.raises(ArchitectureRefused, match=r"'zzzzzzzz'; timm\.list_models\(\) has all$"):
        create("zzzzzzzz")


def test_create_reports_an_error_of_timm_in_one_line(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("No pretrained weights exist\nfor this")

    monkeypatch.setattr(timm(), "create_model", fail)

    with pytest.raises(ArchitectureRefused, match=r"resnet18: No pretrained weights exist$"):
        create("resnet18", weights="hub")


def test_preprocessing_of_the_tiny_network_comes_from_its_config():
    assert architectures.preprocessing_of(tinynet.TinyNet()) == tinynet.spec()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"input_size": (1, 32, 32)}, "not an RGB square", id="grey"),
        pytest.param({"input_size": (3, 32, 48)}, "not an RGB square", id="oblong"),
        pytest.param({"crop_mode": "border"}, "crop mode 'border'", id="crop-mode"),
        pytest.param({"interpolation": "random"}, "interpolation 'random'", id="interpolation"),
    ],
)
def test_preprocessing_that_the_contract_lacks_is_refused(changes, message):
    with pytest.raises(ArchitectureRefused, match=message):
        architectures.preprocessing_of(network_with_config(**changes))


def test_wrapper_rewrites_pooling_in_a_copy_only():
    network = tinynet.TinyNet().eval()
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)

    wrapped = tinynet.wrapped(network)

    assert isinstance(network.pool, nn.AdaptiveAvgPool2d)
    assert not isinstance(wrapped.network.pool, nn.AdaptiveAvgPool2d)
    assert wrapped(pixels)[2].shape == (2, 6)


@pytest.fixture
def builders(monkeypatch):
    """A copy of the registry, so that a test does not change the real one."""
    monkeypatch.setattr(architectures, "BUILDERS", dict(architectures.BUILDERS))
    return architectures.BUILDERS


@pytest.mark.usefixtures("builders")
def test_registered_architecture_is_built_with_classes_size_and_options():
    asked = []

    @architectures.register
    def my_network(n_classes, input_size_px, **options):
        asked.append((n_classes, input_size_px, options))
        return tinynet.TinyNet(n_classes)

    network = create("my_network", 4, input_size_px=48, options={"depth": 3})

    assert asked == [(4, 48, {"depth": 3})]
    assert not network.training
    assert architectures.preprocessing_of(network).crop_size_px == 48


@pytest.mark.usefixtures("builders")
def test_architecture_registered_twice_is_an_error():
    with pytest.raises(ValueError, match="'convnet' is registered twice"):
        architectures.register(architectures.convnet)


def test_create_convnet_accepts_options_as_toml_parses_them():
    network = create(
        "convnet", 3, input_size_px=16, options={"widths": [2, 4], "grey": True, "hidden": []}
    )

    assert isinstance(network, ConvNet)
    assert network.get_parameter("blocks.1.0.weight").shape == (4, 2, 3, 3)
    assert network.get_parameter("classifier.weight").shape == (3, 4 * 4 * 4)


def test_create_convnet_has_a_default_input_size():
    assert architectures.preprocessing_of(create("convnet", 2)).crop_size_px == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"n_classes": None}, "no number of classes of its own", id="no-classes"),
        pytest.param({"weights": "hub"}, "no weights on the hub", id="hub"),
        pytest.param({"options": {"depth": 3}}, "convnet .*depth=3.*'depth'", id="unknown-option"),
        pytest.param({"options": {"widths": [0]}}, "widths: one number", id="bad-value"),
        pytest.param({"options": {"widths": 8}}, "widths=8", id="bad-type"),
    ],
)
def test_create_convnet_with_invalid_arguments_is_refused(arguments, message):
    with pytest.raises(ArchitectureRefused, match=message):
        create("convnet", **{"n_classes": 2, **arguments})


def test_create_timm_passes_options_on():
    network = create("resnet10t", 3, options={"drop_rate": 0.25})

    assert network.drop_rate == 0.25


def test_create_timm_with_an_unknown_option_names_it():
    with pytest.raises(ArchitectureRefused, match=r"built with drop_rat=0.25: .*'drop_rat'"):
        create("resnet10t", 3, options={"drop_rat": 0.25})


@pytest.mark.parametrize("option", ["num_classes", "in_chans", "checkpoint_path", "pretrained"])
def test_create_timm_with_an_option_that_is_a_config_key_is_refused(option):
    with pytest.raises(ArchitectureRefused, match=f"{option} cannot be an option"):
        create("resnet10t", 3, options={option: 1})


@pytest.mark.parametrize("architecture", ["resnet10t", "convnet"])
@pytest.mark.parametrize("resize_mode", ["shortest_side", "squash"])
def test_input_size_and_crop_apply_to_the_spec_and_to_timms_transform(architecture, resize_mode):
    network = create(architecture, 3, input_size_px=40, crop_fraction=0.8, resize_mode=resize_mode)

    spec = architectures.preprocessing_of(network)

    assert (spec.crop_size_px, spec.resize_size_px, spec.resize_mode) == (40, 50, resize_mode)
    image = photo((70, 55))
    pixels = torch.from_numpy(reference_pixels(image, spec).transpose(2, 0, 1).copy())[None]
    torch.testing.assert_close(
        architectures.normalise(pixels, spec)[0],
        architectures.evaluation_transform(network)(image),
        atol=1e-6,
        rtol=0,
    )


def test_input_size_of_one_network_does_not_change_the_next():
    create("resnet10t", 3, input_size_px=40)

    spec = architectures.preprocessing_of(create("resnet10t", 3))

    assert spec.crop_size_px == 176


def test_transformer_is_built_for_its_input_size():
    network = create("test_vit", 3, input_size_px=96)

    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


def test_normalise_equals_the_arithmetic_of_an_exported_graph():
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    network = tinynet.TinyNet().eval()

    with torch.inference_mode():
        logits = network(architectures.normalise(pixels, tinynet.spec()))
        exported = tinynet.wrapped(network)(pixels.permute(0, 2, 3, 1))[1]

    assert torch.equal(logits, exported)


class TwoHeads(tinynet.TinyNet):
    """Answers the mean of two classifiers, as distilled networks do."""

    def __init__(self):
        super().__init__()
        self.second = nn.Linear(6, 3)

    def get_classifier(self):
        return self.classifier, self.second

    def forward_head(self, x, pre_logits=False):
        pooled = self.pool(x).flatten(1)
        return pooled if pre_logits else (self.classifier(pooled) + self.second(pooled)) / 2


def test_wrapped_network_with_two_classifiers_gives_their_mean():
    network = TwoHeads().eval()
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)

    with torch.inference_mode():
        _, logits, embedding, _ = tinynet.wrapped(network)(pixels)
        expected = network(architectures.normalise(pixels.permute(0, 3, 1, 2), tinynet.spec()))

    assert embedding.shape == (2, 6)
    torch.testing.assert_close(logits, expected)

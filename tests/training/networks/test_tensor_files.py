"""Checkpoints as training scripts and libraries write them."""

import argparse
import collections
import datetime
import logging
import pathlib
import types
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from training.errors import WeightsRefused
from training.networks.tensor_files import read_tensors
from training.networks.weights import load_into, read_weights


class Net(nn.Module):
    """A convolution with batch norm and a classifier."""

    def __init__(self, n_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.norm(self.conv(x)).mean((2, 3)))
        return logits


def compiled_as_torch(network: nn.Module) -> Any:
    """Wraps a network like `torch.compile`, without loading its compiler."""
    return torch.compile(network, backend="eager")


class Lit(nn.Module):
    """The shape of a LightningModule: the network in an attribute, a weighted loss beside it."""

    def __init__(self, attribute: str, network: nn.Module) -> None:
        super().__init__()
        self.add_module(attribute, network)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))


@dataclass
class Options:
    rate: float = 0.1


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return Net()


@pytest.fixture
def load(tmp_path):
    """Saves an object, reads it back into a new network and returns that."""

    def save_and_load(content, name="last.pth", key=None):
        torch.save(content, tmp_path / name)
        network = Net()
        load_into(network, read_weights(str(tmp_path / name), key))
        return network

    return save_and_load


def assert_same(network, trained):
    for name, tensor in trained.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "key",
    [
        *("model", "state_dict", "model_state_dict", "model_state", "net", "network", "module"),
        *("ema", "state_dict_ema", "model_ema", "params", "params_ema", "weights", "my_own_key"),
    ],
)
def test_weights_are_found_under_any_key(load, trained, key):
    optimizer = torch.optim.AdamW(trained.parameters())
    trained(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()

    network = load(
        {
            "epoch": torch.tensor(3),
            key: trained.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": {"last_epoch": 3},
            "loss_state": {"center": torch.zeros(3)},
            "best_acc": np.float64(0.9),
        }
    )

    assert_same(network, trained)


def test_weights_below_two_keys_are_found(load, trained):
    assert_same(load({"state": {"network": trained.state_dict(), "epoch": 1}}), trained)


@pytest.mark.parametrize("attribute", ["model", "net", "backbone", "classifier.inner"])
@pytest.mark.parametrize("compiled", [False, True])
def test_lightning_checkpoint_is_read_without_its_prefix(load, trained, attribute, compiled):
    network = compiled_as_torch(trained) if compiled else trained
    first, _, inner = attribute.partition(".")
    holder = network
    if inner:
        holder = nn.Module()
        holder.add_module(inner, network)
    lit = Lit(first, holder)

    loaded = load(
        {
            "epoch": 1,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": lit.state_dict(),
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": torch.tensor(0.5)}},
            "optimizer_states": [],
            "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 0.1, "path": pathlib.PurePosixPath("/data")},
        },
        "epoch=1.ckpt",
    )

    assert_same(loaded, trained)


def test_torch_compile_and_parallel_prefixes_are_taken_off_in_any_order(load, trained):
    for network in (
        compiled_as_torch(trained),
        nn.DataParallel(trained),
        nn.DataParallel(compiled_as_torch(trained)),
        compiled_as_torch(nn.DataParallel(trained)),
        nn.DataParallel(nn.DataParallel(trained)),
    ):
        assert_same(load(network.state_dict()), trained)


def test_compiled_part_of_a_network_is_read(load, trained):
    expected = Net()
    expected.load_state_dict(trained.state_dict())
    trained.conv = compiled_as_torch(trained.conv)

    assert_same(load({"model": trained.state_dict()}), expected)


def test_average_of_torch_swa_is_read(load, trained):
    average = torch.optim.swa_utils.AveragedModel(trained)

    assert_same(load(average.state_dict()), trained)
    assert_same(load({"model": Net().state_dict(), "model_ema": average.state_dict()}), trained)


def test_average_is_taken_before_the_weights_of_the_last_step(load, trained, caplog):
    with caplog.at_level(logging.INFO):
        for raw, average in (
            ("state_dict", "state_dict_ema"),
            ("model", "model_ema"),
            ("model", "ema"),
            ("current_model_state", "state_dict"),
        ):
            content = {raw: Net().state_dict(), average: trained.state_dict()}

            assert_same(load(content), trained)

    assert "weights under state_dict, state_dict_ema: state_dict_ema is taken" in caplog.text


def test_average_of_timm_is_read(load, trained):
    from training.system.torch_compat import timm

    timm()
    from timm.utils.model_ema import ModelEmaV3

    average = ModelEmaV3(trained)

    assert_same(load({"state_dict_ema": average.state_dict()}), trained)


def test_checkpoint_of_timms_training_script_is_read(tmp_path, trained):
    from training.system.torch_compat import timm

    timm()
    from timm.utils.checkpoint_saver import CheckpointSaver
    from timm.utils.model_ema import ModelEmaV3

    saver = CheckpointSaver(
        Net(),
        torch.optim.SGD(trained.parameters(), lr=0.1),
        args=argparse.Namespace(model="net", lr=0.1),
        model_ema=ModelEmaV3(trained),
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(3, metric=0.9)

    weights = read_weights(str(tmp_path / "model_best.pth.tar"))

    network = Net()
    load_into(network, weights)
    assert weights.source == "file model_best.pth.tar, state_dict_ema"
    assert_same(network, trained)


def test_state_dict_of_distributed_training_is_read(load, trained, tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    try:
        content = {"model": nn.parallel.DistributedDataParallel(trained).state_dict()}
    finally:
        torch.distributed.destroy_process_group()

    assert_same(load(content), trained)


def test_source_names_the_key(tmp_path, trained):
    torch.save({"model": trained.state_dict()}, tmp_path / "last.pth")

    assert read_weights(str(tmp_path / "last.pth")).source == "file last.pth, model"


def test_several_sets_of_weights_are_refused_with_their_keys_and_the_flag(load, trained):
    content = {"student": trained.state_dict(), "teacher": Net().state_dict()}

    with pytest.raises(
        WeightsRefused, match="weights under student, teacher; choose with --weights-key KEY"
    ):
        load(content)

    assert_same(load(content, key="student"), trained)


def test_several_prefixes_are_refused_with_their_keys_and_the_flag(load, trained):
    both = nn.ModuleDict({"student": trained, "teacher": Net()})

    with pytest.raises(
        WeightsRefused, match=r"under state_dict\.student, state_dict\.teacher; choose with"
    ):
        load({"state_dict": both.state_dict()})

    assert_same(load({"state_dict": both.state_dict()}, key="state_dict.student"), trained)


def test_average_beside_the_network_in_one_state_dict_is_taken(load, trained):
    both = nn.ModuleDict({"model": Net(), "ema_model": trained})

    assert_same(load({"state_dict": both.state_dict()}), trained)


def test_key_that_the_file_lacks_is_refused_with_those_it_has(load, trained):
    with pytest.raises(WeightsRefused, match="has no ema; its keys are epoch, model"):
        load({"epoch": 1, "model": trained.state_dict()}, key="ema")


def test_file_without_weights_is_refused_with_its_keys(load):
    with pytest.raises(WeightsRefused, match="no tensors by name; its keys are epoch, optimizer"):
        load({"epoch": 1, "optimizer": {}})


def test_batch_norm_without_counters_is_read(load, trained):
    state = {
        name: tensor
        for name, tensor in trained.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }

    assert_same(load(state), trained)
    assert_same(load({f"model.{name}": tensor for name, tensor in state.items()}), trained)


def test_parameters_without_statistics_are_refused_with_what_to_save(load, trained):
    with pytest.raises(WeightsRefused, match=r"statistics of batch norm .* save model.state_dict"):
        load(dict(trained.named_parameters()))


def test_half_precision_and_parameters_are_read(load, trained):
    expected = Net()
    expected.load_state_dict(trained.half().state_dict())

    assert_same(load({"model": trained.state_dict()}), expected)


@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(
            lr=0.1, data=pathlib.PurePosixPath("/data"), nested=argparse.Namespace()
        ),
        types.SimpleNamespace(lr=0.1),
        pathlib.Path("runs"),
        np.float64(0.5),
        np.zeros(3, np.int64),
        np.zeros(2, bool),
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        collections.defaultdict(list, a=[1]),
        collections.deque([1.0, 2.0], maxlen=5),
        torch.__version__,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_objects_beside_the_weights_are_passed_over(tmp_path, trained, beside, zipped):
    torch.save(
        {"args": beside, "state_dict": trained.state_dict()},
        tmp_path / "model_best.pth.tar",
        _use_new_zipfile_serialization=zipped,
    )

    tensors, key = read_tensors(tmp_path / "model_best.pth.tar")

    assert key == "state_dict"
    assert tensors.keys() == trained.state_dict().keys()


def test_harmless_classes_are_not_created(tmp_path, trained, monkeypatch):
    torch.save({"args": argparse.Namespace(a=1), "model": trained.state_dict()}, tmp_path / "a.pt")
    monkeypatch.setattr(argparse.Namespace, "__setstate__", None, raising=False)

    assert read_tensors(tmp_path / "a.pt").key == "model"


def test_nothing_is_allowed_after_a_file_was_read(tmp_path, trained):
    torch.save(trained.state_dict(), tmp_path / "a.pt")
    before = torch.serialization.get_safe_globals()

    read_tensors(tmp_path / "a.pt")

    assert set(torch.serialization.get_safe_globals()) == set(before)


@pytest.mark.parametrize("zipped", [True, False])
def test_class_of_the_user_is_refused_with_its_name_and_the_way(tmp_path, trained, zipped):
    torch.save(
        {"options": Options(), "model": trained.state_dict()},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=zipped,
    )

    with pytest.raises(WeightsRefused, match=r"holds [\w.]+\.Options beside the weights") as caught:
        read_tensors(tmp_path / "a.pth")

    # The advice works.
    content = torch.load(tmp_path / "a.pth", map_location="cpu", weights_only=False)
    torch.save(content["model"], tmp_path / "weights.pth")
    assert 'c = torch.load("a.pth", map_location="cpu", weights_only=False)' in str(caught.value)
    assert read_tensors(tmp_path / "weights.pth").tensors.keys() == trained.state_dict().keys()


@pytest.mark.parametrize("wrap", [lambda network: network, lambda network: {"model": network}])
def test_whole_network_is_refused_with_the_line_that_saves_its_weights(tmp_path, trained, wrap):
    torch.save(wrap(trained), tmp_path / "a.pth")

    with pytest.raises(
        WeightsRefused, match=r'whole network.*torch\.save\(model\.state_dict\(\), "weights\.pth"\)'
    ):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_refused_with_the_line_that_saves_its_weights(tmp_path, trained, load):
    torch.jit.trace(trained.eval(), torch.zeros(1, 3, 8, 8)).save(tmp_path / "a.pt")

    with pytest.raises(WeightsRefused, match=r'torch\.jit\.load\("a\.pt"\)\.state_dict\(\)'):
        read_tensors(tmp_path / "a.pt")

    assert_same(load(torch.jit.load(tmp_path / "a.pt").state_dict()), trained)


def test_program_of_torch_export_is_refused_with_the_way(tmp_path, trained):
    program = torch.export.export(trained.eval(), (torch.zeros(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "a.pt2")
    (tmp_path / "a.pt2").rename(tmp_path / "a.pt")

    with pytest.raises(WeightsRefused, match=r"torch\.export.*program\.state_dict"):
        read_tensors(tmp_path / "a.pt")


def test_safetensors_with_a_prefix_is_read_in_any_case_of_its_suffix(tmp_path, trained):
    state = {f"model.{name}": tensor for name, tensor in trained.state_dict().items()}
    save_file(state, tmp_path / "NET.SAFETENSORS")
    network = Net()

    load_into(network, read_weights(str(tmp_path / "NET.SAFETENSORS")))

    assert_same(network, trained)


def test_extra_state_is_passed_over(load, trained):
    assert_same(load({**trained.state_dict(), "norm._extra_state": {"scale": 1}}), trained)


def test_entry_that_is_no_tensor_is_named(load, trained):
    with pytest.raises(WeightsRefused, match="epoch is int, not a plain tensor"):
        load({**trained.state_dict(), "epoch": 3})


def test_tensors_of_a_compiled_network_and_the_network_itself_are_refused(load, trained):
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in trained.state_dict().items()}

    with pytest.raises(WeightsRefused, match="twice"):
        load({**trained.state_dict(), **compiled})


def test_missing_classifier_below_a_prefix_is_named_without_it(load, trained):
    state = {
        f"model.{name}": tensor
        for name, tensor in trained.state_dict().items()
        if not name.startswith("fc")
    }

    with pytest.raises(WeightsRefused, match=r"2 tensors missing, first fc\.weight"):
        load({"state_dict": state})


def test_names_of_other_code_are_refused_with_the_way(load, trained):
    with pytest.raises(WeightsRefused, match="export a network of other code to ONNX"):
        load({f"features.{name[::-1]}": tensor for name, tensor in trained.state_dict().items()})


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1", "git lfs pull", id="git-lfs"),
        pytest.param(b"<!doctype html>", "is a web page", id="web-page"),
    ],
)
def test_what_a_failed_download_leaves_is_named(tmp_path, suffix, content, message):
    (tmp_path / f"net.{suffix}").write_bytes(content)

    with pytest.raises(WeightsRefused, match=message):
        read_tensors(tmp_path / f"net.{suffix}")


def test_folder_of_weights_is_refused_as_such(tmp_path):
    with pytest.raises(WeightsRefused, match="a folder; give a file in it"):
        read_tensors(tmp_path)


def test_weights_are_not_fetched():
    with pytest.raises(WeightsRefused, match="URLs are not fetched"):
        read_weights("https://example.org/net.pth")

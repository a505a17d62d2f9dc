import importlib.util

import pytest
import torch

from training.system import torch_compat


def test_timm_and_torchvision_transforms_work():
    assert torch_compat.timm().is_model("tf_efficientnet_lite0")
    assert torch_compat.timm().data.ImageNetInfo().num_classes() == 1000


def test_torchvision_version_is_read_without_importing_it():
    assert torch_compat.torchvision_version().startswith("0.")


def test_operators_are_declared_at_most_once(monkeypatch):
    made: list[str] = []
    monkeypatch.setattr(torch_compat, "_kept_alive", [])
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch_compat, "torchvision_version", lambda: "0.28.0+cu130")
    monkeypatch.setattr(torch.library, "Library", lambda *_: _Recorder(made))

    assert torch_compat.prepare_torchvision()
    assert torch_compat.prepare_torchvision()

    assert [name.split("(")[0] for name in made] == ["nms", "qnms"]


@pytest.mark.parametrize(
    ("cuda", "version"),
    [
        pytest.param("13.0", "0.28.0+cu130", id="torch-with-cuda"),
        pytest.param(None, "0.28.0+cpu", id="torchvision-for-cpu"),
        pytest.param(None, "", id="torchvision-missing"),
    ],
)
def test_nothing_is_declared_where_nothing_is_missing(monkeypatch, cuda, version):
    monkeypatch.setattr(torch_compat, "_kept_alive", [])
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch_compat, "torchvision_version", lambda: version)

    assert not torch_compat.prepare_torchvision()
    assert torch_compat._kept_alive == []


def test_torchvision_version_without_torchvision_is_empty(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    assert torch_compat.torchvision_version() == ""


class _Recorder:
    def __init__(self, made):
        self.define = made.append

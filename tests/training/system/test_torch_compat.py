import importlib

import pytest
import torch

from training.system import torch_compat


def test_timm_and_torchvision_transforms_work():
    assert torch_compat.timm().is_model("tf_efficientnet_lite0")
    assert torch_compat.timm().data.ImageNetInfo().num_classes() == 1000


class _FakeTorchvision:
    """A torchvision that can be imported only after its operators are declared."""

    def __init__(self, declared):
        self.declared = declared

    def define(self, operator):
        self.declared.append(operator.split("(")[0])

    def load(self, _):
        if "nms" not in self.declared:
            raise RuntimeError("operator torchvision::nms does not exist")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param([], ["nms", "qnms"], id="extension-does-not-load"),
        pytest.param(["nms"], ["nms"], id="nothing-is-missing"),
    ],
)
def test_missing_operators_are_declared(monkeypatch, before, after):
    torchvision = _FakeTorchvision(before)
    monkeypatch.setattr(torch_compat, "_libraries", [])
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.library, "Library", lambda *_: torchvision)
    monkeypatch.setattr(importlib, "import_module", torchvision.load)

    torch_compat.prepare_torchvision()
    torch_compat.prepare_torchvision()

    assert torchvision.declared == after


def test_torchvision_error_with_a_cuda_torch_is_not_hidden(monkeypatch):
    # For example, torch and torchvision may be built for different CUDA versions.
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(importlib, "import_module", _FakeTorchvision([]).load)

    with pytest.raises(RuntimeError, match="does not exist"):
        torch_compat.prepare_torchvision()

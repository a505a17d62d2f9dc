import importlib

import pytest
import torch

from training.system import torch_compat


def test_timm_and_torchvision_transforms_work():
    assert torch_compat.timm().is_model("tf_efficientnet_lite0")
    assert torch_compat.timm().data.ImageNetInfo().num_classes() == 1000


class _Torchvision:
    """An import of torchvision that succeeds once its operators are declared."""

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
def test_operators_are_declared_where_they_are_missing(monkeypatch, before, after):
    made = _Torchvision(before)
    monkeypatch.setattr(torch_compat, "_libraries", [])
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.library, "Library", lambda *_: made)
    monkeypatch.setattr(importlib, "import_module", made.load)

    torch_compat.prepare_torchvision()
    torch_compat.prepare_torchvision()

    assert made.declared == after


def test_failure_next_to_cuda_torch_is_not_hidden(monkeypatch):
    """Such as two versions of CUDA."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(importlib, "import_module", _Torchvision([]).load)

    with pytest.raises(RuntimeError, match="does not exist"):
        torch_compat.prepare_torchvision()

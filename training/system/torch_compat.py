"""Lets CPU builds of torch work with the CUDA build of torchvision that PyPI offers.

PyPI's torchvision is compiled against CUDA torch. Next to CPU torch its extension does not load, and
its import fails because it registers Python helpers for two operators the extension would have
defined. Declaring these two first makes the import succeed; `torchvision.transforms` and timm then
work, while `torchvision.ops` and `torchvision.io` do not.

timm imports torchvision, so this is also the one door to timm.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import torch

_OPERATORS: Final = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A library's operators vanish with the object, so it lives as long as the process.
_kept_alive: list[object] = []


def prepare_torchvision() -> None:
    """Imports torchvision, with its operators declared where its own extension does not load."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # operator torchvision::nms does not exist
        if torch.version.cuda is not None:
            raise
        make: Any = torch.library.Library  # torch leaves it untyped
        library = make("torchvision", "FRAGMENT")
        for operator in _OPERATORS:
            library.define(operator)
        _kept_alive.append(library)
        importlib.import_module("torchvision")


def timm() -> Any:
    """Returns the module timm, with the parts that it does not import by itself."""
    prepare_torchvision()
    for part in ("optim", "scheduler"):
        importlib.import_module(f"timm.{part}")
    return importlib.import_module("timm")

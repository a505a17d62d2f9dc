"""Makes the CPU build of torch work with the torchvision on PyPI, which is built for CUDA.

Beside CPU torch, torchvision's extension does not load. The import then fails, because it registers
Python helpers for two operators that the extension would define. With these two declared first, the
import succeeds: `torchvision.transforms` and timm work, `torchvision.ops` and `torchvision.io` do not.

timm imports torchvision, so import timm only through `timm()`.
"""

from __future__ import annotations

import importlib
from typing import Any, Final

import torch

_OPERATORS: Final = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# Operators disappear when their library object is freed, so keep it for the whole process.
_libraries: list[object] = []


def prepare_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # operator torchvision::nms does not exist
        if torch.version.cuda is not None:
            raise  # a CUDA build fails for another reason

        make: Any = torch.library.Library  # untyped in torch
        library = make("torchvision", "FRAGMENT")
        for operator in _OPERATORS:
            library.define(operator)
        _libraries.append(library)
        importlib.import_module("torchvision")


def timm() -> Any:
    """Imports timm, including the submodules that it does not import by itself."""
    prepare_torchvision()
    for part in ("optim", "scheduler"):
        importlib.import_module(f"timm.{part}")
    return importlib.import_module("timm")

"""Lets CPU builds of torch work with the CUDA build of torchvision that PyPI offers.

PyPI's torchvision is compiled against CUDA torch. Next to CPU torch its extension does not load, and
its import fails because it registers Python helpers for two operators the extension would have
defined. Declaring these two first makes the import succeed; `torchvision.transforms` and timm then
work, while `torchvision.ops` and `torchvision.io` do not.

timm imports torchvision, so this is also the one door to timm.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any, Final

import torch

_OPERATORS: Final = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A library's operators vanish with the object, so it lives as long as the process.
_kept_alive: list[object] = []


def prepare_torchvision() -> bool:
    """Declares torchvision's operators where its own extension cannot.

    Returns:
        True if they were declared, now or by an earlier call; False where torch has CUDA or
        torchvision is a CPU build or missing, and nothing needs to be done.
    """
    if _kept_alive:
        return True
    if torch.version.cuda is not None or "+cu" not in torchvision_version():
        return False
    make: Any = torch.library.Library  # torch leaves it untyped
    library = make("torchvision", "FRAGMENT")
    for operator in _OPERATORS:
        library.define(operator)
    _kept_alive.append(library)
    return True


def timm() -> Any:
    """Returns the module timm, with the parts that it does not import by itself."""
    prepare_torchvision()
    for part in ("optim", "scheduler"):
        importlib.import_module(f"timm.{part}")
    return importlib.import_module("timm")


def torchvision_version() -> str:
    """Returns the full version such as "0.28.0+cu130" without importing torchvision, or ""."""
    # The distribution's metadata lacks the part after the plus, so the package's own file is read.
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ""
    path = Path(spec.origin).with_name("version.py")
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return found[1] if found else ""

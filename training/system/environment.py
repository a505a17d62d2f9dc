"""Facts about the run for the manifest: package versions, and the command line without folders."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

PACKAGES: Final = (
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "pillow",
    "numpy",
)


def installed_versions() -> dict[str, str]:
    # Only packages that can change the graph or the accuracy.
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command_line(arguments: Sequence[str]) -> str:
    """Returns the command line of `sys.argv`, with every path reduced to its last part."""
    program, *rest = arguments
    name = Path(program).name
    # `python -m training` sets argv[0] to .../__main__.py.
    shown = "convserve-train" if name == "__main__.py" else name
    return shlex.join([shown, *(_without_folder(argument) for argument in rest)])


def _without_folder(argument: str) -> str:
    option, equals, value = argument.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={_without_folder(value)}"
    # A description such as --dataset's may contain a slash too, but it also has spaces.
    is_path = argument.startswith(os.sep) or (os.sep in argument and " " not in argument)
    return Path(argument).name if is_path else argument


def is_first_process() -> bool:
    # torchrun sets RANK. The first process writes the files.
    return os.environ.get("RANK", "0") == "0"

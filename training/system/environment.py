"""Facts about the run for a manifest: package versions and the command line, without local paths."""

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
    """Returns the versions of Python and of the packages that shape a graph."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command_line(arguments: Sequence[str]) -> str:
    """Returns a command line with every path cut down to its last part.

    Args:
        arguments: the program first, as in `sys.argv`.
    """
    program, *rest = arguments
    name = Path(program).name
    # `python -m training` runs a file of that name.
    shown = "convserve-train" if name == "__main__.py" else name
    return shlex.join([shown, *(_without_folder(argument) for argument in rest)])


def _without_folder(argument: str) -> str:
    option, equals, value = argument.partition("=")
    if equals and option.startswith("--"):
        return f"{option}={_without_folder(value)}"
    # Text such as a dataset's description may hold a slash too, but it has spaces.
    is_path = argument.startswith(os.sep) or (os.sep in argument and " " not in argument)
    return Path(argument).name if is_path else argument


def is_first_process() -> bool:
    """Whether this is the process of a run that writes files; without torchrun the only one."""
    return os.environ.get("RANK", "0") == "0"

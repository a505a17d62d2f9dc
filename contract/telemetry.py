"""Switches off the usage reporting of onnxruntime before it is imported.

onnxruntime's Linux wheel sends usage data to its maker unless ORT_DISABLE_TELEMETRY is set when it
is imported (docs/decisions/0011-no-telemetry.md). Every entry point calls this function first. So do
the two functions that import onnxruntime, for programs without one of our entry points, such as
`uvicorn service.app:create_app`.
"""

from __future__ import annotations

import os
from typing import Final

_SWITCH: Final = "ORT_DISABLE_TELEMETRY"


def disable_runtime_telemetry() -> None:
    """Sets ORT_DISABLE_TELEMETRY=1 in this process's environment, whatever its value was."""
    # Do not write it twice: native code on another thread could be reading the environment, and
    # that is not safe during a write.
    if os.environ.get(_SWITCH) != "1":
        os.environ[_SWITCH] = "1"

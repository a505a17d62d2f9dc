"""Switches off the usage reporting of onnxruntime before it is imported.

onnxruntime's Linux wheel reports to its maker unless ORT_DISABLE_TELEMETRY is in the environment at
import time (see docs/decisions/0011-no-telemetry.md). convserve sends nothing, so every entry point
calls this first. So do the two functions that import the runtime, once, for programs that enter
elsewhere, such as `uvicorn service.app:create_app`.
"""

from __future__ import annotations

import os
from typing import Final

_SWITCH: Final = "ORT_DISABLE_TELEMETRY"


def disable_runtime_telemetry() -> None:
    """Puts ORT_DISABLE_TELEMETRY=1 into this process's environment, whatever it held before.

    Writes nothing where it is there already: native code of other threads may be reading the
    environment, which is not safe beside a write.
    """
    if os.environ.get(_SWITCH) != "1":
        os.environ[_SWITCH] = "1"

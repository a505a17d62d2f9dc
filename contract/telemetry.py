"""Switches off the usage reporting of onnxruntime before it is imported.

onnxruntime's Linux wheel reports to its maker unless ORT_DISABLE_TELEMETRY is in the environment at
import time (see docs/decisions/0011-no-telemetry.md). convserve sends nothing, so every place that
imports the runtime calls this first.
"""

from __future__ import annotations

import os


def disable_runtime_telemetry() -> None:
    """Puts ORT_DISABLE_TELEMETRY=1 into this process's environment, whatever it held before."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"

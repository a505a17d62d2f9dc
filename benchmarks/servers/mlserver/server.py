"""Writes the settings that MLServer reads from a folder, then starts it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlserver.cli
import picture


def main() -> None:
    """Starts MLServer in the working directory, which the harness has made for this run."""
    settings = {
        "host": "127.0.0.1",
        "http_port": picture.PORT,
        "grpc_port": picture.PORT + 1,
        "metrics_port": picture.PORT + 2,
        "parallel_workers": picture.WORKERS,
        "debug": False,
    }
    model = {
        "name": "classifier",
        "implementation": "runtime.Classifier",
        "max_batch_size": picture.MAX_BATCH_SIZE,
        "max_batch_time": 0.001 if picture.MAX_BATCH_SIZE > 1 else 0,
    }
    Path("settings.json").write_text(json.dumps(settings), encoding="utf-8")
    Path("model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    sys.argv = ["mlserver", "start", "."]
    mlserver.cli.main()


if __name__ == "__main__":
    main()

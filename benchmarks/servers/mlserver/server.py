"""Writes MLServer's settings files into the working directory, then starts it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlserver.cli
import picture


def main() -> None:
    # The working directory is empty and made for this run.
    settings = {
        "host": "127.0.0.1",
        "http_port": picture.PORT,
        "grpc_port": picture.PORT + 1,  # `free_port` has checked the next two as well
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

"""Shared by the servers beside convserve: preparation, session and top-5.

It prepares a picture as tutorials do: Pillow decodes the whole picture, resizes its shorter side
and cuts out the middle, by the manifest's numbers. It imports nothing of this project, because each
server runs in a virtual environment of its own, with this folder on its path.

The parameters come in the environment: BENCH_GRAPH and BENCH_MANIFEST are files, BENCH_PORT is
where to listen, BENCH_BATCH the largest batch, BENCH_WORKERS and BENCH_THREADS the numbers of
these.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

_MANIFEST = json.loads(Path(os.environ["BENCH_MANIFEST"]).read_text(encoding="utf-8"))
_SPEC = _MANIFEST["preprocessing"]
LABELS = [label["name"] for label in _MANIFEST["labels"]]

TOP_K = 5
PORT = int(os.environ.get("BENCH_PORT", "0"))
MAX_BATCH_SIZE = int(os.environ.get("BENCH_BATCH", "8"))
WORKERS = int(os.environ.get("BENCH_WORKERS", "1"))
THREADS = int(os.environ.get("BENCH_THREADS", "1"))


def prepare(data: bytes) -> np.ndarray:
    """Returns a picture as the graph's input: uint8, shape (S, S, 3), 0..255."""
    return prepare_image(Image.open(io.BytesIO(data)))


def prepare_image(image: Image.Image) -> np.ndarray:
    """The same for a picture that the framework has opened."""
    image = image.convert("RGB")
    target, crop = _SPEC["resize_size_px"], _SPEC["crop_size_px"]
    scale = target / min(image.size)
    # `max`, because rounding down could leave the shorter side one pixel short.
    size = (max(target, int(image.width * scale)), max(target, int(image.height * scale)))
    if _SPEC["resize_mode"] == "squash":
        size = (target, target)

    image = image.resize(size, Image.Resampling[_SPEC["interpolation"].upper()])
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))  # (S, S, 3)


def open_session(intra_op_threads: int | None = None) -> onnxruntime.InferenceSession:
    """Opens the graph, with onnxruntime's default if no number of threads is given."""
    options = onnxruntime.SessionOptions()
    if intra_op_threads is not None:
        options.intra_op_num_threads = intra_op_threads
    return onnxruntime.InferenceSession(
        os.environ["BENCH_GRAPH"], options, providers=["CPUExecutionProvider"]
    )


def infer(session: onnxruntime.InferenceSession, batch: np.ndarray) -> np.ndarray:
    """Runs uint8, shape (N, S, S, 3), and returns probabilities, float32, shape (N, C)."""
    return session.run(["probabilities"], {"image": batch})[0]


def top5(probabilities: np.ndarray) -> dict[str, Any]:
    """Returns the answer for one row of probabilities, shape (C,)."""
    # Partition first: sorting all 1,000 classes would take longer.
    indices = np.argpartition(probabilities, -TOP_K)[-TOP_K:]
    indices = indices[np.argsort(-probabilities[indices])]
    return {
        "predictions": [
            {"label": LABELS[i], "index": int(i), "probability": float(probabilities[i])}
            for i in indices
        ]
    }

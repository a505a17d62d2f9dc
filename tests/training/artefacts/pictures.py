"""What the scripts beside it share: a class for each example picture, and random crops to train on.

Needs NumPy and Pillow only, since each script runs in the environment of its tool.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
SIDE_PX = 32
_FILES = sorted(
    path for path in (HERE.parents[2] / "examples").iterdir() if path.suffix in (".jpg", ".png")
)
LABELS = [path.stem for path in _FILES]
_PICTURES = [Image.open(path).convert("RGB") for path in _FILES]


def whole() -> np.ndarray[Any, Any]:
    """Returns the pictures as `--resize 32 --crop 32` prepares them, uint8, shape (5, 32, 32, 3)."""
    return np.stack([_square(picture, *_middle(picture)) for picture in _PICTURES])


def crops(n: int = 40) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Returns uint8 pixels, shape (5 n, 32, 32, 3), and their classes, int64, shape (5 n,)."""
    generator = np.random.default_rng(0)
    rows, classes = [], []
    for _ in range(n):
        for index, picture in enumerate(_PICTURES):
            left, top, side = _middle(picture)
            part = side * generator.uniform(0.7, 1.0)
            shift = generator.uniform(0, side - part, 2)
            rows.append(_square(picture, left + shift[0], top + shift[1], part))
            classes.append(index)
    return np.stack(rows), np.array(classes)


def save(
    name: str, answers: np.ndarray[Any, Any], pixels: np.ndarray[Any, Any] | None = None
) -> None:
    """Writes what the tool itself answers to the whole pictures, beside its file."""
    pixels = whole() if pixels is None else pixels
    np.savez_compressed(
        HERE / f"{name}.npz", pixels=pixels, answers=np.asarray(answers, np.float32)
    )


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray[Any, Any] = raised / raised.sum(axis=1, keepdims=True)
    return shares


def _middle(picture: Image.Image) -> tuple[float, float, float]:
    width, height = picture.size
    side = min(picture.size)
    return (width - side) / 2, (height - side) / 2, side


def _square(picture: Image.Image, left: float, top: float, side: float) -> np.ndarray[Any, Any]:
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR, box=box))

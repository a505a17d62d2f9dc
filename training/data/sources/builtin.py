"""Data sets that need no files of one's own: scikit-learn's digits, and what torchvision downloads.

Their pictures are kept in memory as PNG files, so that they pass through everything that a user's
own files pass through.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from training.data.sources.catalogue import Catalogue, CatalogueEntry, SourceContents
from training.errors import DataRefused, first_line

DIGITS: Final = "digits"

# UCI Machine Learning Repository, "Optical Recognition of Handwritten Digits" (Alpaydin and
# Kaynak, 1998), doi 10.24432/C50P49; scikit-learn carries its 1,797 test digits.
DIGITS_LICENSE: Final = "CC-BY-4.0"

TORCHVISION_SETS: Final = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS")
"""Those whose classes take `root`, `train` and `download`."""

_DIGIT_MAX: Final = 16


def find_digits() -> SourceContents:
    """Returns scikit-learn's 1,797 handwritten digits, 8 x 8 grey, not split.

    Raises:
        DataRefused: scikit-learn is not installed.
    """
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise DataRefused(
            "the digits come with scikit-learn; run pip install scikit-learn"
        ) from error
    digits: Any = datasets.load_digits()
    catalogue = Catalogue()
    for i, (values, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        grey = np.round(values * 255 / _DIGIT_MAX).astype(np.uint8)
        picture = _png(Image.fromarray(grey))
        catalogue.add(CatalogueEntry(f"{DIGITS}/{i:04d}.png", str(target), None, picture))
    return catalogue.found(DIGITS, DIGITS_LICENSE)


def find_torchvision(name: str, cache_dir: Path) -> SourceContents:
    """Returns a set of torchvision with its own test split, downloading it once.

    Args:
        name: one of `TORCHVISION_SETS`.
        cache_dir: keeps what is downloaded.

    Raises:
        DataRefused: the name is unknown, or the set could not be downloaded.
    """
    if name not in TORCHVISION_SETS:
        raise DataRefused(
            f"torchvision:{name} is not supported; there are {', '.join(TORCHVISION_SETS)}"
        )
    from training.system.torch_compat import (
        prepare_torchvision,  # imports torch, which takes seconds
    )

    prepare_torchvision()
    kind = getattr(importlib.import_module("torchvision.datasets"), name)
    catalogue = Catalogue()
    for split, is_train in (("train", True), ("test", False)):
        for entry in _entries(_load(kind, cache_dir, is_train), split):
            catalogue.add(entry)
    return catalogue.found(name)


def _load(kind: Any, cache_dir: Path, is_train: bool) -> Any:
    try:
        return kind(root=str(cache_dir), train=is_train, download=True)
    except (OSError, RuntimeError) as error:
        raise DataRefused(
            f"{kind.__name__} could not be downloaded into {cache_dir}: {first_line(error)}"
        ) from error


def _entries(dataset: Any, split: str) -> Iterator[CatalogueEntry]:
    names = getattr(dataset, "classes", None)
    for i in range(len(dataset)):
        image, target = dataset[i]
        label = str(names[target]) if names else str(target)
        yield CatalogueEntry(f"{split}/{i:05d}.png", label, split, _png(image))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()

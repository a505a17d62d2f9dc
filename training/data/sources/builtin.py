"""Well-known data sets: scikit-learn's digits, and sets that torchvision downloads.

Their pictures become PNG files in memory, so they take the same path as a user's own files.
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

# Sets whose constructors take `root`, `train` and `download`.
TORCHVISION_SETS: Final = ("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "USPS")

_DIGIT_MAX: Final = 16  # white


def find_digits() -> SourceContents:
    """Returns scikit-learn's 1,797 handwritten digits, 8 x 8 grey, not split."""
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise DataRefused(
            "scikit-learn, which contains the digits, is not installed; run pip install scikit-learn"
        ) from error

    digits: Any = datasets.load_digits()
    catalogue = Catalogue()
    for i, (values, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        grey = np.round(values * 255 / _DIGIT_MAX).astype(np.uint8)
        picture = _png(Image.fromarray(grey))
        catalogue.add(CatalogueEntry(f"{DIGITS}/{i:04d}.png", str(target), None, picture))
    return catalogue.contents(DIGITS, DIGITS_LICENSE)


def find_torchvision(name: str, cache_dir: Path) -> SourceContents:
    """Returns a torchvision set with its own test split. Downloads it into `cache_dir` once."""
    if name not in TORCHVISION_SETS:
        raise DataRefused(
            f"torchvision:{name} is not supported; use one of {', '.join(TORCHVISION_SETS)}"
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
    return catalogue.contents(name)


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

"""Small data sets on disk, and functions that copy and change their pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageEnhance

from tests.pictures import jpeg, photo, png
from training.config.config import Data
from training.data.checks.check import check_data, load_data
from training.data.checks.findings import Finding, Findings
from training.data.samples import DataSet, Sample
from training.data.sources.catalogue import SourceContents

SIZE = (72, 60)


def write(root: Path, *names: str, seed: int = 0) -> Path:
    """Writes a different picture under each name and returns the root."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = photo(SIZE, seed=1000 * seed + i)
        path.write_bytes(png(image) if path.suffix == ".png" else jpeg(image))
    return root


def write_classes(root: Path, labels: str = "ab", n: int = 10, split: str = "") -> Path:
    """Writes n different pictures into a folder for each letter."""
    for label in labels:
        seed = ord(label) + 1000 * ("train", "validation", "test", "").index(split)
        names = [f"{split}/{label}/{label}{i}.jpg".lstrip("/") for i in range(n)]
        write(root, *names, seed=seed)
    return root


def write_splits(root: Path, labels: str = "ab", n: int = 10) -> Path:
    """Writes a data set with all three splits and no findings."""
    for split in ("train", "validation", "test"):
        write_classes(root, labels, n, split)
    return root


def samples(*names: str, index: int = 0) -> tuple[Sample, ...]:
    """Returns samples in memory, each a different picture."""
    return tuple(
        Sample(name, index, data=jpeg(photo(SIZE, seed=i))) for i, name in enumerate(names)
    )


def sample_names(found: SourceContents) -> list[str]:
    return [sample.name for sample in found.samples]


def label_names(found: SourceContents) -> list[str]:
    return [label.name for label in found.labels]


def by_code(findings: Findings) -> dict[str, Finding]:
    """Returns the last finding of each code."""
    return {one.code: one for one in findings.items}


def names_by_split(data: DataSet) -> dict[str, set[str]]:
    return {
        split: {sample.name for sample in data.split(split)}
        for split in ("train", "validation", "test")
    }


def _recompressed(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(jpeg(image, quality=35))).convert("RGB")


def _cropped(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image.crop((width // 32, height // 24, width - width // 50, height - height // 32))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "recompressed": _recompressed,
    "smaller": lambda image: image.resize((image.width // 3, image.height // 3)),
    "larger": lambda image: image.resize((image.width * 2, image.height * 2)),
    "squashed": lambda image: image.resize((image.width, image.width)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.15),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.85),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cropped": _cropped,
}


def load(root, tmp_path, *, input_size_px=None, **config):
    return load_data(
        str(root),
        Data(**config),
        cache_dir=tmp_path / "cache",
        input_size_px=input_size_px,
    )


def check(root, tmp_path, **config):
    return check_data(str(root), Data(**config), cache_dir=tmp_path / "cache")


def copy(root, source, target, change=None):
    """Copies a picture within the data set, unchanged or with one of `CHANGES`."""
    path = root / target
    path.parent.mkdir(parents=True, exist_ok=True)
    if change is None:
        path.write_bytes((root / source).read_bytes())
    else:
        path.write_bytes(jpeg(CHANGES[change](Image.open(root / source).convert("RGB"))))

"""The pictures to send: a folder of photographs, and broken files made from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from contract.versions import find_versions
from convserve.loadtest.pictures import Picture, break_pictures

ROOT: Final = Path(__file__).parents[1]
_SUFFIXES: Final = (".jpg", ".jpeg")
_MAX_BYTES: Final = 1_000_000  # keeps the requests of all photos in memory


def default_folder() -> Path:
    # The examples are four pictures. SHARED, if set, is a folder with a larger sample.
    beside = Path(os.environ.get("SHARED", "nowhere")) / "data" / "imagenet-sample"
    return beside.resolve() if beside.is_dir() else ROOT / "examples"


def default_graph() -> Path:
    """Returns the newest committed int8 graph."""
    home = ROOT / "models"
    name = "efficientnet_lite0"
    return home / name / str(max(find_versions(home)[name])) / "model.onnx"


def read_photos(folder: Path) -> list[bytes]:
    """Returns the JPEG files of a folder in the order of their names, without the largest ones."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    photos = [file.read_bytes() for file in files if file.stat().st_size <= _MAX_BYTES]
    if not photos:
        raise FileNotFoundError(f"{folder} holds no JPEG files of {_MAX_BYTES} bytes or less")
    return photos


def corrupt(photos: list[bytes], n: int, seed: int = 0) -> list[bytes]:
    """Returns `n` broken uploads, of every kind that the load test has."""
    pictures = [Picture(f"{number}.jpg", photo) for number, photo in enumerate(photos)]
    return [picture.content for picture in break_pictures(pictures, n, seed)]

"""Pictures as files: folders with and without labels, and input rows of a graph.

Everything is decoded and prepared by `contract`, as the service does it. An unreadable file is
counted, never fatal; links that lead out of a folder are not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from contract.errors import ImageError
from contract.images import decode
from contract.manifest import Interface, Label
from contract.preprocessing import Tensor, read_input
from training.data.labels import class_of_folder
from training.errors import PicturesMissing

Transform = Callable[[bytes, Interface], Tensor]
"""Makes an input row of a file; `read_input`, or a reference to compare it with."""

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})


@dataclass(frozen=True, slots=True)
class Picture:
    """One image file.

    Attributes:
        name: the file's name, without its folder.
        data: the whole file.
        index: the class it shows, where that is known.
    """

    name: str
    data: bytes
    index: int | None = None


class PictureFolder:
    """The readable pictures of a list of files, read anew on every pass.

    Args:
        paths: (file, class index or None) pairs.
        unlabelled: how many files of the folder were left out for want of a class.

    Attributes:
        unreadable: files left out on the latest pass because they do not decode.
    """

    def __init__(self, paths: Sequence[tuple[Path, int | None]], unlabelled: int = 0) -> None:
        self.unlabelled = unlabelled
        self.unreadable = 0
        self._paths = paths

    def __iter__(self) -> Iterator[Picture]:
        self.unreadable = 0
        for path, index in self._paths:
            try:
                data = path.read_bytes()
                decode(data)
            except (ImageError, OSError):
                self.unreadable += 1
            else:
                yield Picture(path.name, data, index)

    def __str__(self) -> str:
        return (
            f"{len(self._paths) - self.unreadable} pictures, {self.unreadable} unreadable and "
            f"{self.unlabelled} of no known class left out"
        )


def scan_labelled(root: Path, labels: tuple[Label, ...]) -> PictureFolder:
    """Finds the pictures of a folder whose class is known.

    Args:
        root: class folders named by synset or label, or files named `<synset>_<anything>`.
        labels: the classes.

    Raises:
        PicturesMissing: no such folder, or no picture of a known class in it.
    """
    found: list[tuple[Path, int | None]] = []
    unlabelled = 0
    for path in image_files(root):
        folder = path.parent.name if path.parent != root else path.name.split("_")[0]
        index = class_of_folder(folder, labels)
        if index is None:
            unlabelled += 1
        else:
            found.append((path, index))
    if not found:
        raise PicturesMissing(f"{root.name}: no picture of a known class")
    return PictureFolder(found, unlabelled)


def scan_plain(root: Path) -> PictureFolder:
    """Finds all pictures of a folder, whatever they show.

    Raises:
        PicturesMissing: no such folder, or no picture in it.
    """
    found = [(path, None) for path in image_files(root)]
    if not found:
        raise PicturesMissing(f"{root.name}: no pictures")
    return PictureFolder(found)


def example_pictures() -> Path:
    """Returns the folder of free pictures that come with the package or lie in its source tree."""
    package = Path(__file__).parents[1]
    packaged = package / "example_pictures"
    return packaged if packaged.is_dir() else package.parent / "examples"


def image_files(root: Path) -> Iterator[Path]:
    """Yields the image files below a folder in a fixed order, following no links out of it."""
    if not root.is_dir():
        raise PicturesMissing(f"{root.name}: no such folder")
    inside = root.resolve()
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and inside in path.resolve().parents:
            yield path


def input_rows(
    pictures: Iterable[Picture], manifest: Interface, prepare: Transform = read_input
) -> list[NDArray[Any]]:
    """Prepares pictures, exactly as the service does unless told otherwise.

    Returns:
        One row a picture, of the dtype and layout of the graph's input.
    """
    return [prepare(picture.data, manifest) for picture in pictures]

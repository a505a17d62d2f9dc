"""Reads folders of pictures, with and without labels, and turns pictures into input of a graph.

`contract` decodes and preprocesses them, as in the service. An unreadable file is counted and never
fatal. Links that lead out of a folder are not followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from contract.comparison import class_of_folder
from contract.errors import ImageError
from contract.images import decode, is_image_name
from contract.manifest import Interface, Label
from contract.preprocessing import Tensor, read_input
from training.errors import PicturesMissing

# Turns a file into an input row: `read_input`, or a cache or reference in its place.
ReadInput = Callable[[bytes, Interface], Tensor]


@dataclass(frozen=True, slots=True)
class Picture:
    """The content of an image file."""

    name: str  # of a file in a folder, without the folder
    data: bytes
    index: int | None = None  # the class, if it is known


class PictureFolder:
    """The readable pictures among some files, read again on every pass."""

    def __init__(self, paths: Sequence[tuple[Path, int | None]], unlabelled: int = 0) -> None:
        self.unlabelled = unlabelled  # files of the folder that belong to no class
        self.unreadable = 0  # files that the latest pass left out
        self._paths = paths  # with the class index or None

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

    def after(self, n: int) -> PictureFolder:
        """Returns the folder without its first n files, or all of it if there are no others."""
        return PictureFolder(self._paths[n:] or self._paths)

    def __str__(self) -> str:
        return (
            f"{len(self._paths) - self.unreadable} pictures, {self.unreadable} unreadable and "
            f"{self.unlabelled} of no known class left out"
        )


def scan_labelled(root: Path, labels: tuple[Label, ...]) -> PictureFolder:
    """Finds the pictures of a folder that belong to one of the classes.

    Args:
        root: holds class folders named by synset or label, or files named `<synset>_<anything>`.
        labels: the classes.

    Raises:
        PicturesMissing: the folder does not exist, or holds no picture of these classes.
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
        raise PicturesMissing(
            f"{root.name}: no picture belongs to a class of the model; name the folders by label or "
            "synset"
        )
    return PictureFolder(found, unlabelled)


def scan_plain(root: Path) -> PictureFolder:
    """Finds all pictures of a folder. Raises PicturesMissing if there are none."""
    found = [(path, None) for path in image_files(root)]
    if not found:
        raise PicturesMissing(f"{root.name}: no pictures")
    return PictureFolder(found)


def example_pictures() -> Path:
    """Returns the folder of the free pictures that come with the package."""
    # In a source tree, they are in the folder beside the package.
    package = Path(__file__).parents[1]
    packaged = package / "example_pictures"
    return packaged if packaged.is_dir() else package.parent / "examples"


def image_files(root: Path) -> Iterator[Path]:
    """Yields the image files below a folder, sorted, without links that lead out of it."""
    if not root.is_dir():
        raise PicturesMissing(f"{root.name}: no such folder")
    inside = root.resolve()
    for path in sorted(root.rglob("*")):
        if is_image_name(path) and path.is_file() and inside in path.resolve().parents:
            yield path


def input_rows(
    pictures: Iterable[Picture], manifest: Interface, prepare: ReadInput = read_input
) -> list[NDArray[Any]]:
    """Returns one row per picture, of the dtype and layout of the graph's input."""
    return [prepare(picture.data, manifest) for picture in pictures]

"""Finds the pictures of a folder: class folders, inside split folders or not.

    data/train/cat/1.jpg            data/cat/1.jpg
    data/val/cat/2.jpg              data/dog/2.jpg
    data/test/dog/3.jpg

Folders inside a class folder belong to the class. Links that lead out of the folder are not
followed. Hidden files and the leftovers of archivers and file managers are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from training.data.pictures import SUFFIXES
from training.data.sources.catalogue import Catalogue, CatalogueEntry, SourceContents
from training.errors import DataRefused

# Names of split folders, and values in a list's `split` column, in any case.
SPLIT_NAMES: Final = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

NOT_A_PICTURE: Final = "not a picture"
LINKED_FOLDER: Final = "a link to a folder"

_JUNK: Final = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir"})


def find_in_folder(root: Path) -> SourceContents:
    """Finds the pictures of a folder.

    Raises:
        DataRefused: it has no class folders, two folders for one split, or splits but no `train`.
    """
    catalogue = Catalogue()
    splits = _split_folders(root)

    for name in splits.values() if splits else [""]:
        split = SPLIT_NAMES[name.casefold()] if name else None
        for folder in _folders(root / name, root, catalogue):
            if not splits:
                _refuse_inner_splits(folder, root)
            _add_class(folder, split, root, catalogue)

    if splits:
        for other in _folders(root, root, catalogue):
            if other.name not in splits.values():
                catalogue.skip("a folder beside the splits", other.name)
    contents = catalogue.contents(root.resolve().name)
    if not contents.labels:
        raise DataRefused(
            f"{root.name}: no class folders; expected {root.name}/train/<label>/<picture> with "
            f"val and test beside it, or {root.name}/<label>/<picture>"
        )
    return contents


def _split_folders(root: Path) -> dict[str, str]:
    """Returns the folder's name of each split; nothing if the folder is not split."""
    splits: dict[str, str] = {}
    for path in sorted(root.iterdir()):
        split = SPLIT_NAMES.get(path.name.casefold())
        if split is None or not path.is_dir():
            continue
        if path.is_symlink():
            raise DataRefused(
                f"{root.name}: {path.name} is a link, and links are not followed; "
                "move the folder here, or give a .csv list"
            )
        if split in splits:
            raise DataRefused(
                f"{root.name}: {splits[split]} and {path.name} both hold {split} pictures; keep one"
            )
        splits[split] = path.name

    if splits and "train" not in splits:
        raise DataRefused(
            f"{root.name}: has {', '.join(splits.values())} but no train folder; add one"
        )
    return splits


def _refuse_inner_splits(folder: Path, root: Path) -> None:
    # Otherwise the pictures of all splits would become one class.
    for path in sorted(folder.iterdir()):
        if path.is_dir() and SPLIT_NAMES.get(path.name.casefold()) == "train":
            raise DataRefused(
                f"{root.name}/{folder.name} contains {path.name}; give "
                f"{root.name}/{folder.name} if that is the data set, or put the splits above the "
                f"labels: {root.name}/{path.name}/{folder.name}"
            )


def _folders(parent: Path, root: Path, catalogue: Catalogue) -> list[Path]:
    folders = []
    for path in sorted(parent.iterdir()):
        if _is_junk(path.name):
            continue
        if path.is_symlink() and path.is_dir():
            catalogue.skip(LINKED_FOLDER, _name(path, root))
        elif path.is_dir():
            folders.append(path)
        else:
            is_picture = path.suffix.lower() in SUFFIXES
            reason = "a picture outside the class folders" if is_picture else NOT_A_PICTURE
            catalogue.skip(reason, _name(path, root))
    return folders


def _add_class(folder: Path, split: str | None, root: Path, catalogue: Catalogue) -> None:
    catalogue.add_label(folder.name)
    before = len(catalogue.entries)
    for path in _pictures(folder, root, catalogue):
        catalogue.add(CatalogueEntry(_name(path, root), folder.name, split, path))
    if len(catalogue.entries) == before:
        catalogue.empty.append(_name(folder, root))


def _pictures(folder: Path, root: Path, catalogue: Catalogue) -> Iterator[Path]:
    inside = root.resolve()

    def skip_folder(error: OSError) -> None:
        catalogue.skip("a folder that cannot be read", _name(Path(error.filename), root))

    for parent, folders, files in os.walk(folder, onerror=skip_folder):
        folders[:] = [name for name in folders if not _is_junk(name)]
        for name in folders:
            if Path(parent, name).is_symlink():  # which os.walk does not enter
                catalogue.skip(LINKED_FOLDER, _name(Path(parent, name), root))

        for path in (Path(parent, name) for name in files if not _is_junk(name)):
            reason = _reason_to_skip(path, inside)
            if reason is None:
                yield path
            else:
                catalogue.skip(reason, _name(path, root))


def _reason_to_skip(path: Path, inside: Path) -> str | None:
    if path.suffix.lower() not in SUFFIXES:
        return NOT_A_PICTURE
    if path.is_symlink():
        if inside not in path.resolve().parents:
            return "a link out of the folder"
        return None if path.is_file() else "a link to nothing"
    return None if path.is_file() else NOT_A_PICTURE  # such as a pipe


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _JUNK


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()

"""Finds the pictures of a folder: class folders, inside split folders or not.

    data/train/cat/1.jpg            data/cat/1.jpg
    data/val/cat/2.jpg              data/dog/2.jpg
    data/test/dog/3.jpg

A class may be called `train` or `test`: what lies inside decides whether such a folder is a split.
Folders inside a class folder belong to the class. Links that lead out of the folder are not
followed. Hidden files and the leftovers of archivers and file managers are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from contract.images import is_image_name
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

_MARK_CLASSES: Final = "move all class folders into one folder called train, or give a .csv list"
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
    named = [
        path for path in sorted(root.iterdir()) if _split_of(path) is not None and path.is_dir()
    ]
    if _are_classes(named, root):
        return {}

    splits: dict[str, str] = {}
    for path in named:
        split = SPLIT_NAMES[path.name.casefold()]
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
            f"{root.name}: has {', '.join(splits.values())} but no train folder; add one, or if these "
            f"are classes, {_MARK_CLASSES}"
        )
    return splits


def _are_classes(named: list[Path], root: Path) -> bool:
    """Tells whether folders with the names of splits are classes, from what lies inside.

    Raises:
        DataRefused: they may be either.
    """
    others = [path for path in _visible_folders(root) if path not in named]
    named = [path for path in named if not path.is_symlink()]
    flat = [path for path in named if _has_pictures(path) and not _visible_folders(path)]
    nested = [path for path in named if _visible_folders(path)]
    if len(flat) == 1 and not nested and any(_has_pictures(path, below=True) for path in others):
        return True

    if any(_split_of(path) == "train" for path in flat) or (flat and not nested):
        raise DataRefused(
            f"{root.name}: {_listed(flat)} no class folders; if this is a split, move "
            f"each picture into {flat[-1].name}/<label>/; if it is a class, {_MARK_CLASSES}"
        )
    mixed = [path for path in others if _has_pictures(path)]
    if len(nested) == 1 and mixed:
        raise DataRefused(
            f"{root.name}: {nested[0].name} holds folders, and {_listed(mixed[:3])} no folders; if "
            f"{nested[0].name} is a split, move the others out of {root.name}; if it is a class, "
            f"{_MARK_CLASSES}"
        )
    return False


def _listed(folders: list[Path]) -> str:
    names = " and ".join(path.name for path in folders)
    return f"{names} hold{'s' if len(folders) == 1 else ''} pictures and"


def _split_of(path: Path) -> str | None:
    return SPLIT_NAMES.get(path.name.casefold())


def _visible_folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir() and not path.is_symlink()]


def _has_pictures(folder: Path, *, below: bool = False) -> bool:
    if any(is_image_name(path) for path in _entries(folder)):
        return True
    return below and any(_has_pictures(path, below=True) for path in _visible_folders(folder))


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not _is_junk(path.name))
    except OSError:  # reported when its pictures are listed
        return []


def _refuse_inner_splits(folder: Path, root: Path) -> None:
    # Otherwise the pictures of all splits would become one class.
    for path in _entries(folder):
        if path.is_dir() and _split_of(path) == "train":
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
            is_picture = is_image_name(path)
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
    if not is_image_name(path):
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

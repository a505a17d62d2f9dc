"""Finds the pictures of a list: a CSV file with a header and one picture a line.

    path,label,split
    photos/1.jpg,cat,train
    photos/2.jpg,dog,test

The `split` column may be missing, or empty in some lines. Paths are relative to the list's folder.
Commas, semicolons and tabs separate; the encoding is UTF-8, with a byte order mark or without.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from training.data.sources.catalogue import Catalogue, CatalogueEntry, SourceContents
from training.data.sources.folders import SPLIT_NAMES
from training.errors import DataRefused

COLUMNS: Final = {
    "path": ("path", "filename", "filepath", "file", "image"),
    "label": ("label", "class", "category"),
    "split": ("split", "set"),
}
"""What a column may be called, in any case; the first that is there counts."""

_DELIMITERS: Final = ",;\t"


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the list, as it is written."""

    line: int
    path: str
    label: str
    split: str


def find_listed(path: Path) -> SourceContents:
    """Finds the pictures that a CSV file names.

    A file that is missing is noted, and so is a line without a path or a label.

    Raises:
        DataRefused: the list cannot be read, its header lacks a column, or a split is unknown.
    """
    catalogue = Catalogue()
    seen: set[tuple[str, str, str]] = set()
    taken: set[str] = set()
    for row in _rows(path):
        key = (row.path, row.label, row.split)
        if not row.path or not row.label:
            catalogue.skip("a line without path or label", f"line {row.line}")
        elif key in seen:
            catalogue.skip("listed twice", f"{row.path} (line {row.line})")
        else:
            seen.add(key)
            _add(row, path, taken, catalogue)
    return catalogue.found(path.stem)


def _add(row: _Row, path: Path, taken: set[str], catalogue: Catalogue) -> None:
    split = SPLIT_NAMES.get(row.split.casefold()) if row.split else None
    if row.split and split is None:
        raise DataRefused(
            f"{path.name}, line {row.line}: unknown split {row.split!r}; "
            f"use one of {', '.join(SPLIT_NAMES)}, or leave it empty"
        )
    file = _file(path.parent, row.path)
    if file is None:
        catalogue.add_label(row.label)
        catalogue.skip("no such file", f"{row.path} (line {row.line})")
        return
    name = Path(row.path).as_posix()
    if name in taken:  # under another label or in another split, which the checks report
        name = f"{name} (line {row.line})"
    taken.add(name)
    catalogue.add(CatalogueEntry(name, row.label, split, file))


def _file(folder: Path, written: str) -> Path | None:
    """Returns the file that is meant, also where the list was written on Windows."""
    for text in (written, written.replace("\\", "/")):
        try:
            if (folder / text).is_file():
                return folder / text
        except (OSError, ValueError):  # a name that is too long, or holds a zero byte
            return None
    return None


def _rows(path: Path) -> Iterator[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataRefused(f"{path.name}: {error.strerror or 'cannot be read'}") from error
    except UnicodeDecodeError as error:
        raise DataRefused(f"{path.name}: is not UTF-8; save the list in that encoding") from error
    delimiter, columns = _header(path.name, text)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        next(rows)
        for row in rows:
            if any(cell.strip() for cell in row):
                cells = [_cell(row, columns[kind]) for kind in COLUMNS]
                yield _Row(rows.line_num, *cells)
    except csv.Error as error:
        raise DataRefused(f"{path.name}, line {rows.line_num}: {error}") from error


def _header(file_name: str, text: str) -> tuple[str, dict[str, int | None]]:
    """Returns the delimiter and the column numbers; the header decides both."""
    first = next(iter(text.splitlines()), "")
    for delimiter in _DELIMITERS:
        names = [name.strip().casefold() for name in next(csv.reader([first], delimiter=delimiter))]
        columns = {
            kind: next((names.index(alias) for alias in aliases if alias in names), None)
            for kind, aliases in COLUMNS.items()
        }
        if columns["path"] is not None and columns["label"] is not None:
            return delimiter, columns
    raise DataRefused(
        f"{file_name}: the first line must name the columns {COLUMNS['path'][0]} (or "
        f"{', '.join(COLUMNS['path'][1:])}) and {COLUMNS['label'][0]} (or "
        f"{', '.join(COLUMNS['label'][1:])}), and may name {COLUMNS['split'][0]}; "
        f"it is {first[:80]!r}"
    )


def _cell(row: list[str], column: int | None) -> str:
    return row[column].strip() if column is not None and column < len(row) else ""

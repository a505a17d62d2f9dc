"""Finds the pictures of a list: a CSV file with a header and one picture per line.

    path,label,split
    photos/1.jpg,cat,train
    photos/2.jpg,dog,test

The `split` column may be missing, or empty in some lines. Paths are relative to the list's folder.
The separator is a comma, semicolon or tab, the encoding UTF-8 with or without a byte order mark.
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

# Names of each column, in any case. The first name in the header wins.
COLUMNS: Final = {
    "path": ("path", "filename", "filepath", "file", "image", "file_name", "image_path"),
    "label": ("label", "class", "category", "class_name"),
    "split": ("split", "set"),
}

_DELIMITERS: Final = ",;\t"


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the list, unchecked."""

    line: int
    path: str
    label: str
    split: str


def find_listed(path: Path) -> SourceContents:
    """Finds the pictures that a CSV file lists.

    Lines without a path or label and files that do not exist are skipped and reported.

    Raises:
        DataRefused: the list cannot be read, its header lacks a column, or a split is unknown.
    """
    catalogue = Catalogue()
    seen: set[tuple[str, str, str]] = set()
    names: set[str] = set()

    for row in _rows(path):
        key = (row.path, row.label, row.split)
        if not row.path or not row.label:
            catalogue.skip("a line without path or label", f"line {row.line}")
        elif key in seen:
            catalogue.skip("listed twice", f"{row.path} (line {row.line})")
        else:
            seen.add(key)
            _add(row, path, names, catalogue)

    return catalogue.contents(path.stem)


def _add(row: _Row, path: Path, names: set[str], catalogue: Catalogue) -> None:
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
    if name in names:  # with another label or split, which the checks report
        name = f"{name} (line {row.line})"
    names.add(name)
    catalogue.add(CatalogueEntry(name, row.label, split, file))


def _file(folder: Path, written: str) -> Path | None:
    for text in (written, written.replace("\\", "/")):  # lists may come from Windows
        try:
            if (folder / text).is_file():
                return folder / text
        except (OSError, ValueError):  # the name is too long or contains a zero byte
            return None
    return None


def _rows(path: Path) -> Iterator[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataRefused(f"{path.name}: {error.strerror or 'cannot be read'}") from error
    except UnicodeDecodeError as error:
        raise DataRefused(f"{path.name}: not UTF-8; save the list in this encoding") from error

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
    # The delimiter is the first that makes a valid header.
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

"""Reads the labels of the classes from a file."""

from __future__ import annotations

import codecs
import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from contract.manifest import Label
from training.data.labels.json_values import from_json
from training.data.labels.lines import from_lines
from training.data.labels.rows import Row, in_order
from training.data.labels.tables import from_table
from training.errors import LabelsInvalid, first_line

_READERS: Final[dict[str, Callable[[str], Iterable[Row]]]] = {
    ".txt": from_lines,
    ".json": from_json,
    ".csv": from_table,
    ".tsv": from_table,
}


def read_labels(path: Path) -> tuple[Label, ...]:
    """Reads labels in class order.

    Class indexes begin with 0. If a file has them, they decide the order; else its own order does.

    Args:
        path: `.txt` with one class per line: `name`, `id name`, `id: name`, `synset name` or
            `name id`, or with a list or dictionary as Python prints it; `.json` with a list of names
            or of objects with `name` and optional `id` and `synset`, an object from index to name,
            from name to index or from index to `[synset, name]`, one of these as the only member
            of an object, or the `config.json` of Hugging Face or timm; `.csv` or `.tsv` with a
            column `name` and optional columns `id` and `synset`, or without a header.

    Raises:
        LabelsInvalid: the file is unreadable or empty, a label is empty or occurs twice, or the ids
            are not 0, 1, 2, ... in any order.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise LabelsInvalid(f"{path.name}: a labels file must end in one of {', '.join(_READERS)}")

    try:
        rows = in_order(list(reader(_read_text(path))))
        labels = tuple(_label(index, row) for index, row in enumerate(rows))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise LabelsInvalid(f"{path.name}: {_reason(error)}") from error

    if not labels:
        raise LabelsInvalid(f"{path.name}: contains no labels")
    seen: dict[tuple[str, str | None], int] = {}
    for label in labels:
        first = seen.setdefault((label.name, label.synset), label.index)
        if first != label.index:
            raise LabelsInvalid(
                f"{path.name}: the label {label.name!r} occurs more than once, for the classes {first} "
                f"and {label.index}; give each class a name of its own, or its synset"
            )
    return labels


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    # Windows' shell and old editors write UTF-16, always with this mark.
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if wide else "utf-8-sig")


def _label(index: int, row: Row) -> Label:
    name = row.name.strip()
    if not name:
        raise ValueError(f"the class {index} has no name")
    try:
        return Label(index=index, name=name, synset=row.synset or None)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"the {first['loc'][0]} of the class {index}: {first['msg']}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text; save it as UTF-8"
    if isinstance(error, OSError):
        return error.strerror or "cannot be read"
    return first_line(error)

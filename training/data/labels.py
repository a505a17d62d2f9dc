"""Labels of the classes, from timm for ImageNet or from a file.

Files of other tools often number their classes. The numbers decide the order then, not the lines. A file
whose numbers cannot be class indexes is refused, since its order may be wrong too.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from contract.manifest import Label
from training.errors import LabelsInvalid, first_line

_ID_NAMES: Final = ("id", "index", "idx", "class_id", "class_index", "class_idx", "label_id", "")
_NAME_NAMES: Final = ("name", "class_name", "label_name", "label", "class", "description")
_SYNSET_NAMES: Final = ("synset", "wnid", "synset_id", "wordnet_id")

_SYNSET: Final = re.compile(r"n\d{8}")
_ID_FIRST: Final = re.compile(r"(\d+)(?:\s*[:;,=\t]\s*|\s+-\s+)(\S.*)")  # "0: cat", "0,cat"
_ID_FIRST_SPACE: Final = re.compile(r"(\d+)\s+(\S.*)")  # "0 cat", but also "7 spot ladybird"
_ID_LAST: Final = re.compile(r"(\S.*?)(?:\s*[:;,=\t]\s*|\s+)(\d+)")  # "cat 0", but also "class 0"
_SYNSET_FIRST: Final = re.compile(r"(n\d{8})\s*[\s:;,\t]\s*(\S.*)")  # "n02123045 tabby"


@dataclass(frozen=True, slots=True)
class _Row:
    """A class as the file gives it; `index` is None where the file does not number its classes."""

    name: str
    synset: str | None = None
    index: int | None = None


def imagenet_labels() -> tuple[Label, ...]:
    """Returns the 1,000 labels of ImageNet-1k: the synset, and the first of its names."""
    from training.system.torch_compat import timm  # imports torch, which takes seconds

    info = timm().data.ImageNetInfo()
    return tuple(
        Label(index=index, name=info.index_to_description(index).split(",")[0], synset=synset)
        for index, synset in enumerate(info.label_names())
    )


def read_labels(path: Path) -> tuple[Label, ...]:
    """Reads labels in class order.

    Class indexes begin with 0. If a file has them, they decide the order; else its own order does.

    Args:
        path: `.txt` with one class per line: `name`, `id name`, `id: name`, `synset name` or
            `name id`; `.json` with a list of names or of objects with `name` and optional `id` and
            `synset`, an object from index to name, from name to index or from index to
            `[synset, name]`, or Hugging Face's `config.json`; `.csv` or `.tsv` with a column `name`
            and optional columns `id` and `synset`, or without a header.

    Raises:
        LabelsInvalid: the file is unreadable or empty, a label is empty or occurs twice, or the ids
            are not 0, 1, 2, ... in any order.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise LabelsInvalid(f"{path.name}: a labels file must end in one of {', '.join(_READERS)}")

    try:
        rows = _in_order(list(reader(path.read_text(encoding="utf-8-sig"))))
        labels = tuple(
            Label(index=index, name=row.name.strip(), synset=row.synset or None)
            for index, row in enumerate(rows)
        )
    except (OSError, UnicodeDecodeError, ValidationError, ValueError, csv.Error) as error:
        raise LabelsInvalid(f"{path.name}: {_reason(error)}") from error

    if not labels:
        raise LabelsInvalid(f"{path.name}: contains no labels")
    seen: set[tuple[str, str | None]] = set()
    for label in labels:
        if (label.name, label.synset) in seen:
            raise LabelsInvalid(f"{path.name}: the label {label.name!r} occurs more than once")
        seen.add((label.name, label.synset))
    return labels


def _in_order(rows: list[_Row]) -> list[_Row]:
    found = [row.index for row in rows if row.index is not None]
    if not found:
        return rows
    if len(found) < len(rows):
        raise ValueError(f"{len(found)} of {len(rows)} classes have an id; number all or none")
    if not _is_complete(found):
        raise ValueError(
            f"the ids must be 0, 1, 2, ... without a gap, but they are {_listed(found)}; a network's "
            f"first score has the index 0"
        )
    by_index = {row.index: row for row in rows}
    return [by_index[index] for index in range(len(rows))]


def _is_complete(indexes: Iterable[int]) -> bool:
    found = sorted(indexes)
    return found == list(range(len(found)))


def _listed(indexes: Sequence[int]) -> str:
    shown = ", ".join(map(str, indexes[:4]))
    return f"{shown}, ..." if len(indexes) > 4 else shown


def _from_lines(text: str) -> Iterable[_Row]:
    lines = [line.strip() for line in text.splitlines()]
    return [_split_synset(row) for row in _numbered_lines(lines)]


def _numbered_lines(lines: list[str]) -> list[_Row]:
    matches = [match for line in lines if (match := _ID_FIRST.fullmatch(line))]
    if len(matches) == len(lines):
        return [_Row(match[2], index=int(match[1])) for match in matches]
    if matches:
        raise ValueError(
            f"{len(matches)} of {len(lines)} lines begin with an id, such as {matches[0][0]!r}; number "
            "all or none, or use a .json list if it is part of the name"
        )

    # After a space, a number may belong to the name, so only a complete numbering of different names
    # counts as one.
    spaced = [match for line in lines if (match := _ID_FIRST_SPACE.fullmatch(line))]
    last = [match for line in lines if (match := _ID_LAST.fullmatch(line))]
    for found, at, name in ((spaced, 1, 2), (last, 2, 1)):
        names = {match[name] for match in found}
        if len(names) == len(lines) > 1 and _may_be_ids([int(match[at]) for match in found]):
            return [_Row(match[name], index=int(match[at])) for match in found]
    return [_Row(line) for line in lines]


def _may_be_ids(indexes: list[int]) -> bool:
    # Numbers from 1 are ids too; `_in_order` refuses them.
    return _is_complete(indexes) or _is_complete(index - 1 for index in indexes)


def _split_synset(row: _Row) -> _Row:
    match = _SYNSET_FIRST.fullmatch(row.name)
    return replace(row, synset=match[1], name=match[2]) if match else row


def _from_json(text: str) -> Iterable[_Row]:
    content = json.loads(text, object_pairs_hook=_unique_members)
    if isinstance(content, dict) and "id2label" in content:
        rows = _from_map(content["id2label"])
        _check_inverse(rows, content.get("label2id"))
        return rows
    if isinstance(content, dict):
        return _from_map(content)
    if isinstance(content, list):
        return [_json_row(entry) for entry in content]
    raise ValueError("expected a list, or an object from index to name")


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} occurs more than once")
    return members


def _from_map(content: object) -> list[_Row]:
    if not isinstance(content, dict):
        raise ValueError("expected an object from index to name")

    keys_count = all(re.fullmatch(r"\d+", key) for key in content)
    values_count = all(type(value) is int for value in content.values())
    if keys_count and values_count and any(int(key) != content[key] for key in content):
        raise ValueError("both sides are numbers, so it is unclear which are names; use a list")
    if keys_count and not values_count:
        return [replace(_json_row(value), index=int(key)) for key, value in content.items()]
    if values_count:
        return [_Row(name, index=index) for name, index in content.items()]
    raise ValueError("expected an object from index to name, or from name to index")


def _check_inverse(rows: list[_Row], inverse: object) -> None:
    if not isinstance(inverse, dict):
        return
    for row in rows:
        if row.name in inverse and str(inverse[row.name]) != str(row.index):
            raise ValueError(
                f"id2label gives {row.name!r} the id {row.index}, label2id {inverse[row.name]}"
            )


def _json_row(entry: object) -> _Row:
    if isinstance(entry, str):
        return _Row(entry)
    if isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry):
        synset, name = entry
        return _Row(name, synset)
    if isinstance(entry, dict) and entry.keys() <= {"name", "synset", "id", "index"}:
        index = entry.get("id", entry.get("index"))
        name, synset = entry.get("name"), entry.get("synset")
        if isinstance(name, str) and isinstance(synset, str | None) and _is_index(index):
            return _Row(name, synset, index)
    raise ValueError("each entry must be a name, or an object with name and optional id and synset")


def _is_index(value: object) -> bool:
    return value is None or type(value) is int


def _from_csv(text: str) -> Iterable[_Row]:
    lines = text.strip().splitlines()
    if not lines:
        return []
    delimiter = max((",", ";", "\t"), key=lines[0].count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    odd = next((n for n, row in enumerate(rows, 1) if len(row) != len(rows[0])), None)
    if odd is not None:
        raise ValueError(
            f"row {odd} has {len(rows[odd - 1])} columns, the first has {len(rows[0])}; put quotes "
            f"around a name that contains {delimiter!r}"
        )

    if _has_header(rows):
        header, rows = [cell.lower() for cell in rows[0]], rows[1:]
        columns = _named_columns(header, rows)
    else:
        columns = _found_columns(rows)
    return [_csv_row(row, columns) for row in rows]


@dataclass(frozen=True, slots=True)
class _Columns:
    """The positions of the columns of a table."""

    name: int
    index: int | None
    synset: int | None


def _has_header(rows: list[list[str]]) -> bool:
    # A column that counts below its first cell has a title, one that counts from there has none.
    return len(rows[0]) == 1 or not any(_is_numbers(rows, at) for at in range(len(rows[0])))


def _is_numbers(rows: list[list[str]], at: int) -> bool:
    return bool(rows) and all(re.fullmatch(r"\d+", row[at]) for row in rows)


def _named_columns(header: list[str], rows: list[list[str]]) -> _Columns:
    synset = _first_of(header, _SYNSET_NAMES)
    index = _first_of(header, _ID_NAMES)
    if index is not None and synset is None and all(_SYNSET.fullmatch(row[index]) for row in rows):
        index, synset = None, index  # ids of WordNet
    names = [at for title in _NAME_NAMES for at, found in enumerate(header) if found == title]
    if index is None and len(names) > 1:  # label,name: one of them may be the id
        index = next((at for at in names if _is_numbers(rows, at)), None)
    name = next((at for at in names if at != index), None)
    if name is None:
        raise ValueError("the header must have a column called name (or label, class, class_name)")

    for at in range(len(header)):
        if at not in (name, index, synset) and _is_numbering(rows, at):
            raise ValueError(
                f"the column {header[at]!r} numbers the classes; call it id, or remove it"
            )
    return _Columns(name, index, synset)


def _is_numbering(rows: list[list[str]], at: int) -> bool:
    return _is_numbers(rows, at) and _may_be_ids([int(row[at]) for row in rows])


def _first_of(header: list[str], titles: tuple[str, ...]) -> int | None:
    return next((header.index(title) for title in titles if title in header), None)


def _found_columns(rows: list[list[str]]) -> _Columns:
    width = range(len(rows[0]))
    numbers = [at for at in width if _is_numbers(rows, at)]
    synsets = [at for at in width if all(_SYNSET.fullmatch(row[at]) for row in rows)]
    names = [at for at in width if at not in numbers and at not in synsets]
    if len(numbers) != 1 or len(names) != 1:
        raise ValueError("which column holds what is unclear; add a header such as id,name")
    return _Columns(names[0], numbers[0], synsets[0] if synsets else None)


def _csv_row(row: list[str], columns: _Columns) -> _Row:
    name, at, synset = row[columns.name], columns.index, columns.synset
    if at is not None and not re.fullmatch(r"\d+", row[at]):
        raise ValueError(f"the id {row[at]!r} of {name!r} is not a number")
    return _Row(
        name,
        None if synset is None else row[synset],
        None if at is None else int(row[at]),
    )


_READERS: Final[dict[str, Callable[[str], Iterable[_Row]]]] = {
    ".txt": _from_lines,
    ".json": _from_json,
    ".csv": _from_csv,
    ".tsv": _from_csv,
}


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return f"label {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}"
    if isinstance(error, OSError):
        return error.strerror or "cannot be read"
    return first_line(error)

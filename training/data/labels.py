"""Labels of the classes, from timm for ImageNet or from a file.

Files of other tools often number their classes. The numbers decide the order then, not the lines. A file
whose numbers cannot be class indexes is refused, since its order may be wrong too.
"""

from __future__ import annotations

import ast
import codecs
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

# Titles of columns and members, as `_title` returns them. pandas gives its index the last two.
_ID_NAMES: Final = (
    *("id", "index", "idx", "classid", "classindex", "classidx", "labelid"),
    *("", "unnamed:0"),
)
_NAME_NAMES: Final = (
    *("name", "classname", "labelname", "displayname", "label", "class", "description"),
)
_SYNSET_NAMES: Final = ("synset", "wnid", "synsetid", "wordnetid")

_SYNSET: Final = re.compile(r"n\d{8}")
_ID_FIRST: Final = re.compile(r"(\d+)(?:\s*[:;,=\t]\s*|\s+-\s+)(\S.*)")  # "0: cat", "0,cat"
# "0 cat", "0. cat", "(0) cat", but also "7 spot ladybird"
_ID_FIRST_SPACE: Final = re.compile(r"[(\[]?(\d+)[.)\]]?\s+(\S.*)")
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
        rows = _in_order(list(reader(_read_text(path))))
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


def _label(index: int, row: _Row) -> Label:
    name = row.name.strip()
    if not name:
        raise ValueError(f"the class {index} has no name")
    try:
        return Label(index=index, name=name, synset=row.synset or None)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"the {first['loc'][0]} of the class {index}: {first['msg']}") from error


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
    if text.lstrip().startswith(("{", "[")):
        content = _python_value(text)
        if content is not None:
            return _from_content(content)

    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        raise ValueError(f"line {lines.index('') + 1} is empty, and each line is a class")
    found = [match for line in lines if (match := _SYNSET_FIRST.fullmatch(line))]
    if len(found) < len(lines):
        return [_split_synset(row) for row in _numbered_lines(lines)]
    rows = _numbered_lines([match[2] for match in found])
    return [replace(row, synset=match[1]) for row, match in zip(rows, found, strict=True)]


def _python_value(text: str) -> object:
    """Returns the value of a literal as JSON has it, None if the text is none."""
    try:
        return json.loads(json.dumps(ast.literal_eval(text.strip())))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _numbered_lines(lines: list[str]) -> list[_Row]:
    matches = [match for line in lines if (match := _ID_FIRST.fullmatch(line))]
    if len(matches) == len(lines):
        return [_Row(match[2], index=int(match[1])) for match in matches]
    if matches:
        raise ValueError(
            f"{len(matches)} of {len(lines)} lines begin with an id, such as {matches[0][0]!r}; number "
            "all or none, or use a .json list if it is part of the name"
        )

    # Beside a space, a number may belong to the name: "7 spot ladybird", "boeing 747".
    spaced = [match for line in lines if (match := _ID_FIRST_SPACE.fullmatch(line))]
    if len(spaced) == len(lines) and 2 * len({match[2] for match in spaced}) > len(lines) > 1:
        return _with_ids([(match[1], match[2]) for match in spaced])
    last = [match for line in lines if (match := _ID_LAST.fullmatch(line))]
    is_numbered = len({match[1] for match in last}) == len(lines) > 1
    if is_numbered and _may_be_ids([int(match[2]) for match in last]):
        return [_Row(match[1], index=int(match[2])) for match in last]
    return [_Row(line) for line in lines]


def _with_ids(pairs: list[tuple[str, str]]) -> list[_Row]:
    indexes = [int(number) for number, _ in pairs]
    if not _may_be_ids(indexes):
        raise ValueError(
            f"the lines begin with the numbers {_listed(indexes)}, and ids must be 0, 1, 2, ... without a "
            "gap; use a .json list if the numbers are part of the names"
        )
    return [_Row(name, index=index) for index, (_, name) in zip(indexes, pairs, strict=True)]


def _may_be_ids(indexes: list[int]) -> bool:
    # Numbers from 1 are ids too; `_in_order` refuses them.
    return _is_complete(indexes) or _is_complete(index - 1 for index in indexes)


def _split_synset(row: _Row) -> _Row:
    match = _SYNSET_FIRST.fullmatch(row.name)
    return replace(row, synset=match[1], name=match[2]) if match else row


def _from_json(text: str) -> Iterable[_Row]:
    return _from_content(json.loads(text, object_pairs_hook=_unique_members))


def _from_content(content: object) -> list[_Row]:
    if isinstance(content, list):
        return [_json_row(entry) for entry in content]
    if not isinstance(content, dict):
        raise ValueError("expected a list, or an object from index to name")
    if "id2label" in content:  # Hugging Face
        rows = _from_map(content["id2label"])
        _check_inverse(rows, content.get("label2id"))
        return rows
    if "label_names" in content:  # timm
        return _from_timm(content["label_names"], content.get("label_descriptions"))
    if len(content) == 1:  # {"classes": [...]}
        [(key, value)] = content.items()
        if isinstance(value, list | dict) and not re.fullmatch(r"\d+", key):
            return _from_content(value)
    return _from_map(content)


def _from_timm(names: object, descriptions: object) -> list[_Row]:
    rows = _from_content(names)
    if not isinstance(descriptions, dict):
        return rows
    return [
        _Row(
            str(descriptions.get(row.name, row.name)),
            row.name if _SYNSET.fullmatch(row.name) else None,
            row.index,
        )
        for row in rows
    ]


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
    if not keys_count and all(re.fullmatch(r"\d+", str(value)) for value in content.values()):
        content = {name: int(index) for name, index in content.items()}
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
    if isinstance(entry, dict):
        members = {_title(key): value for key, value in entry.items()}
        name, index, synset = (
            next((members.pop(title) for title in titles if title in members), None)
            for titles in (_NAME_NAMES, _ID_NAMES, _SYNSET_NAMES)
        )
        if members:
            raise ValueError("each entry may have a name, an id and a synset, and nothing else")
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
        header, rows = rows[0], rows[1:]
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


def _title(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).lower()  # ClassName, class_name, class name


def _named_columns(header: list[str], rows: list[list[str]]) -> _Columns:
    titles = [_title(cell) for cell in header]
    synset = _first_of(titles, _SYNSET_NAMES)
    index = _first_of(titles, _ID_NAMES)
    if index is not None and synset is None and all(_SYNSET.fullmatch(row[index]) for row in rows):
        index, synset = None, index  # ids of WordNet
    names = [at for title in _NAME_NAMES for at, found in enumerate(titles) if found == title]
    if index is None and len(names) > 1:  # label,name: one of them may be the id
        index = next((at for at in names if _is_numbers(rows, at)), None)
    name = next((at for at in names if at != index), None)
    if name is None:
        name = _only_other(header, rows, {index, synset})
    if name is None:
        raise ValueError("the header must have a column called name (or label, class, class_name)")

    for at in range(len(header)):
        if at not in (name, index, synset) and _is_numbering(rows, at):
            raise ValueError(
                f"the column {header[at]!r} numbers the classes; call it id, or remove it"
            )
    return _Columns(name, index, synset)


def _only_other(header: list[str], rows: list[list[str]], known: set[int | None]) -> int | None:
    """Returns the one column beside the id or the synset, as in `ClassId,SignName`."""
    others = [at for at in range(len(header)) if at not in known]
    is_clear = len(others) == 1 < len(header) and not _is_numbers(rows, others[0])
    return others[0] if is_clear else None


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
        raise ValueError(f"the id {row[at]!r} of {name!r} is not a whole number")
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
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text; save it as UTF-8"
    if isinstance(error, OSError):
        return error.strerror or "cannot be read"
    return first_line(error)

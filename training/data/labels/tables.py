"""Classes of a table (CSV or TSV), with a header or without."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass

from training.data.labels.rows import SYNSET, Row, may_be_ids
from training.data.labels.titles import ID_NAMES, NAME_NAMES, SYNSET_NAMES, as_title


@dataclass(frozen=True, slots=True)
class _Columns:
    """The positions of the columns of a table."""

    name: int
    index: int | None
    synset: int | None


def from_table(text: str) -> Iterable[Row]:
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
    return [_row(row, columns) for row in rows]


def _has_header(rows: list[list[str]]) -> bool:
    # A column that counts below its first cell has a title, one that counts from there has none.
    return len(rows[0]) == 1 or not any(_is_numbers(rows, at) for at in range(len(rows[0])))


def _named_columns(header: list[str], rows: list[list[str]]) -> _Columns:
    titles = [as_title(cell) for cell in header]
    synset = _first_of(titles, SYNSET_NAMES)
    index = _first_of(titles, ID_NAMES)
    if index is not None and synset is None and all(SYNSET.fullmatch(row[index]) for row in rows):
        index, synset = None, index  # ids of WordNet
    names = [at for title in NAME_NAMES for at, found in enumerate(titles) if found == title]
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
    return _is_numbers(rows, at) and may_be_ids([int(row[at]) for row in rows])


def _first_of(header: list[str], titles: tuple[str, ...]) -> int | None:
    return next((header.index(title) for title in titles if title in header), None)


def _found_columns(rows: list[list[str]]) -> _Columns:
    width = range(len(rows[0]))
    numbers = [at for at in width if _is_numbers(rows, at)]
    synsets = [at for at in width if all(SYNSET.fullmatch(row[at]) for row in rows)]
    names = [at for at in width if at not in numbers and at not in synsets]
    if len(numbers) != 1 or len(names) != 1:
        raise ValueError("which column holds what is unclear; add a header such as id,name")
    return _Columns(names[0], numbers[0], synsets[0] if synsets else None)


def _is_numbers(rows: list[list[str]], at: int) -> bool:
    return bool(rows) and all(re.fullmatch(r"\d+", row[at]) for row in rows)


def _row(row: list[str], columns: _Columns) -> Row:
    name, at, synset = row[columns.name], columns.index, columns.synset
    if at is not None and not re.fullmatch(r"\d+", row[at]):
        raise ValueError(f"the id {row[at]!r} of {name!r} is not a whole number")
    return Row(
        name,
        None if synset is None else row[synset],
        None if at is None else int(row[at]),
    )

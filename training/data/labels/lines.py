"""Classes of a text file, one per line, with or without their numbers and synsets."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from training.data.labels.json_values import from_value
from training.data.labels.rows import Row, listed, may_be_ids

_ID_FIRST: Final = re.compile(r"(\d+)(?:\s*[:;,=\t]\s*|\s+-\s+)(\S.*)")  # "0: cat", "0,cat"
# "0 cat", "0. cat", "(0) cat", but also "7 spot ladybird"
_ID_FIRST_SPACE: Final = re.compile(r"[(\[]?(\d+)[.)\]]?\s+(\S.*)")
_ID_LAST: Final = re.compile(r"(\S.*?)(?:\s*[:;,=\t]\s*|\s+)(\d+)")  # "cat 0", but also "class 0"
_SYNSET_FIRST: Final = re.compile(r"(n\d{8})\s*[\s:;,\t]\s*(\S.*)")  # "n02123045 tabby"


def from_lines(text: str) -> Iterable[Row]:
    if text.lstrip().startswith(("{", "[")):
        content = _python_value(text)
        if content is not None:
            return from_value(content)

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


def _numbered_lines(lines: list[str]) -> list[Row]:
    matches = [match for line in lines if (match := _ID_FIRST.fullmatch(line))]
    if len(matches) == len(lines):
        return [Row(match[2], index=int(match[1])) for match in matches]
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
    if is_numbered and may_be_ids([int(match[2]) for match in last]):
        return [Row(match[1], index=int(match[2])) for match in last]
    return [Row(line) for line in lines]


def _with_ids(pairs: list[tuple[str, str]]) -> list[Row]:
    indexes = [int(number) for number, _ in pairs]
    if not may_be_ids(indexes):
        raise ValueError(
            f"the lines begin with the numbers {listed(indexes)}, and ids must be 0, 1, 2, ... without a "
            "gap; use a .json list if the numbers are part of the names"
        )
    return [Row(name, index=index) for index, (_, name) in zip(indexes, pairs, strict=True)]


def _split_synset(row: Row) -> Row:
    match = _SYNSET_FIRST.fullmatch(row.name)
    return replace(row, synset=match[1], name=match[2]) if match else row

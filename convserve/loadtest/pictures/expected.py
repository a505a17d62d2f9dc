"""The first classes that pictures should get, from a file."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Final

from pydantic_core import from_json

from convserve.loadtest.pictures.reading import Picture

_FORMS: Final = (
    'a JSON object {"cat.jpg": "Egyptian cat"}, a CSV file with the columns file and label, or what '
    "`convserve classify` prints with --json or --csv"
)


class BadExpectations(ValueError):
    """The file with the expected classes cannot be used."""


def read_expected(file: Path) -> dict[str, str]:
    """Returns the first class of each picture named in a file, by the names as written there.

    Raises:
        BadExpectations: the file cannot be read, has none of the forms understood, or gives two
            classes to one picture.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadExpectations(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadExpectations(f"{file}: not a text file; give {_FORMS}") from error

    rows = _json_rows(text) if text.lstrip().startswith("{") else _csv_rows(text)
    expected: dict[str, str] = {}
    try:
        for name, label in rows:
            if expected.setdefault(name, label) != label:
                raise BadExpectations(f"two classes for {name}: {expected[name]} and {label}")
    except BadExpectations as error:
        raise BadExpectations(f"{file}: {error}") from error

    if not expected:
        raise BadExpectations(f"{file}: names no picture; give {_FORMS}")
    return expected


def match_expected(expected: Mapping[str, str], pictures: Sequence[Picture]) -> dict[str, str]:
    """Returns the expected class by the name of the picture, for those that have one.

    Names match if they are equal, if the path of one ends with the other, or if the file names are
    equal and no other picture and no other line has that one.

    Raises:
        BadExpectations: a picture matches lines with different classes, or no picture matches any.
    """
    lines: dict[str, set[tuple[str, str]]] = defaultdict(set)  # (path, class) by file name
    for name, label in expected.items():
        path = _posix(name)
        lines[path.rpartition("/")[2]].add((path, label))
    uses = Counter(_posix(picture.name).rpartition("/")[2] for picture in pictures)

    found: dict[str, str] = {}
    for picture in pictures:
        path = _posix(picture.name)
        last = path.rpartition("/")[2]
        labels = {label for line, label in lines[last] if line == path}
        labels = labels or {label for line, label in lines[last] if _ends_with(line, path)}
        if not labels and uses[last] == 1 and len(lines[last]) == 1:
            labels = {label for _, label in lines[last]}

        if len(labels) > 1:
            raise BadExpectations(
                f"{picture.name} could be several of the expected pictures: {', '.join(sorted(labels))}"
            )
        if labels:
            found[picture.name] = labels.pop()

    if not found:
        raise BadExpectations(
            f"none of the {len(expected):,} expected pictures, such as {next(iter(expected))}, is "
            f"among the {len(pictures):,} to send, such as {pictures[0].name}"
        )
    return found


def _posix(name: str) -> str:
    return PurePath(name).as_posix()


def _ends_with(one: str, other: str) -> bool:
    return one.endswith(f"/{other}") or other.endswith(f"/{one}")


def _json_rows(text: str) -> Iterator[tuple[str, str]]:
    documents = []
    try:
        documents = [from_json(text)]
    except ValueError:
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                documents.append(from_json(line))
            except ValueError:
                raise BadExpectations(f"line {number} is not JSON; give {_FORMS}") from None

    for document in documents:
        if isinstance(document, dict) and isinstance(document.get("predictions"), list):
            yield _classified(document)
        elif len(documents) == 1 and {*map(type, document.values())} <= {str, int}:
            yield from ((name, str(label)) for name, label in document.items())
        else:
            raise BadExpectations(
                f"no file and class in {json.dumps(document)[:80]}; give {_FORMS}"
            )


def _classified(document: Mapping[str, object]) -> tuple[str, str]:
    name, predictions = document.get("file"), document["predictions"]
    first = predictions[0] if isinstance(predictions, list) and predictions else None
    label = first.get("label") if isinstance(first, dict) else None
    if not isinstance(name, str) or not isinstance(label, str):
        raise BadExpectations(f"no file and label in {json.dumps(document)[:80]}")
    return name, label


def _csv_rows(text: str) -> Iterator[tuple[str, str]]:
    rows = csv.DictReader(io.StringIO(text))
    try:
        if not {"file", "label"} <= set(rows.fieldnames or ()):
            raise BadExpectations(f"no columns file and label; give {_FORMS}")
        for row in rows:
            if row.get("rank", "1") != "1":  # `convserve classify` writes every class
                continue
            if not row["file"] or not row["label"]:
                raise BadExpectations(f"line {rows.line_num} has no file or no label")
            yield row["file"], row["label"]
    except csv.Error as error:
        raise BadExpectations(f"line {rows.line_num}: {error}; give {_FORMS}") from error

"""Labels of the classes, from timm for ImageNet or from a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from contract.manifest import Label
from training.errors import LabelsInvalid, first_line


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

    Args:
        path: `.txt` with one name per line; `.json` with a list of names, a list of objects with
            `name` and an optional `synset`, or an object from index to name; `.csv` with the columns
            `name` and, optionally, `synset`.

    Raises:
        LabelsInvalid: the file is unreadable or empty, or a label is empty or occurs twice.
    """
    readers = {".txt": _from_lines, ".json": _from_json, ".csv": _from_csv}
    if path.suffix not in readers:
        raise LabelsInvalid(f"{path.name}: a labels file must end in one of {', '.join(readers)}")

    try:
        rows = list(readers[path.suffix](path.read_text(encoding="utf-8-sig")))
        labels = tuple(
            Label(index=index, name=name.strip(), synset=synset or None)
            for index, (name, synset) in enumerate(rows)
        )
    except (OSError, UnicodeDecodeError, ValidationError, ValueError, KeyError) as error:
        raise LabelsInvalid(f"{path.name}: {_reason(error)}") from error

    if not labels:
        raise LabelsInvalid(f"{path.name}: contains no labels")
    seen: set[tuple[str, str | None]] = set()
    for label in labels:
        if (label.name, label.synset) in seen:
            raise LabelsInvalid(f"{path.name}: the label {label.name!r} occurs more than once")
        seen.add((label.name, label.synset))
    return labels


def _from_lines(text: str) -> Iterable[tuple[str, str | None]]:
    return [(line, None) for line in text.splitlines()]


def _from_json(text: str) -> Iterable[tuple[str, str | None]]:
    content = json.loads(text)
    if isinstance(content, dict):
        indexes = sorted(int(key) for key in content)
        if indexes != list(range(len(content))):
            raise ValueError("the class indexes must be 0, 1, 2, ... without a gap")
        content = [content[str(index)] for index in indexes]
    if not isinstance(content, list):
        raise ValueError("expected a list, or an object from index to name")
    return [_json_label(entry) for entry in content]


def _json_label(entry: object) -> tuple[str, str | None]:
    if isinstance(entry, str):
        return entry, None
    if isinstance(entry, dict) and entry.keys() <= {"name", "synset"}:
        return entry["name"], entry.get("synset")
    raise ValueError("each entry must be a name, or an object with name and synset")


def _from_csv(text: str) -> Iterable[tuple[str, str | None]]:
    rows = csv.DictReader(io.StringIO(text))
    if "name" not in (rows.fieldnames or ()):
        raise ValueError("the header must have a column called name")
    return [(row["name"] or "", row.get("synset")) for row in rows]


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return f"label {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}"
    if isinstance(error, OSError):
        return error.strerror or "cannot be read"
    return first_line(error)

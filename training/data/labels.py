"""Names of the classes: ImageNet's from timm, anybody's from a file."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from contract.manifest import Label
from training.errors import LabelsInvalid, first_line

_SYNSET: Final = re.compile(r"n[0-9]{8}")


def imagenet_labels() -> tuple[Label, ...]:
    """Returns the 1,000 ImageNet-1k labels: the first name of each synset, and the synset."""
    from training.system.torch_compat import timm  # torch takes seconds that a data check can save

    info = timm().data.ImageNetInfo()
    return tuple(
        Label(index=index, name=info.index_to_description(index).split(",")[0], synset=synset)
        for index, synset in enumerate(info.label_names())
    )


def read_labels(path: Path) -> tuple[Label, ...]:
    """Reads labels in class order.

    Args:
        path: `.txt` with one name a line; `.json` with a list of names or of objects with `name` and
            an optional `synset`, or an object from index to name; `.csv` with a header of `name` and
            an optional `synset`.

    Raises:
        LabelsInvalid: unreadable, empty, an empty name, or the same label twice.
    """
    readers = {".txt": _from_lines, ".json": _from_json, ".csv": _from_csv}
    if path.suffix not in readers:
        raise LabelsInvalid(f"{path.name}: expected one of {', '.join(readers)}")
    try:
        rows = list(readers[path.suffix](path.read_text(encoding="utf-8-sig")))
        labels = tuple(
            Label(index=index, name=name.strip(), synset=synset or None)
            for index, (name, synset) in enumerate(rows)
        )
    except (OSError, UnicodeDecodeError, ValidationError, ValueError, KeyError) as error:
        raise LabelsInvalid(f"{path.name}: {_reason(error)}") from error
    if not labels:
        raise LabelsInvalid("there are no labels")
    seen: set[tuple[str, str | None]] = set()
    for label in labels:
        if (label.name, label.synset) in seen:
            raise LabelsInvalid(f"the label {label.name!r} occurs more than once")
        seen.add((label.name, label.synset))
    return labels


def class_of_folder(folder: str, labels: tuple[Label, ...]) -> int | None:
    """Returns the class index whose synset or name a folder is called, or None.

    Args:
        folder: a folder name, or the part of an ImageNet file name before its first underscore.
        labels: a name that several classes share matches none; their synsets do.
    """
    if _SYNSET.fullmatch(folder):
        matches = [label.index for label in labels if label.synset == folder]
    else:
        wanted = _folded(folder)
        matches = [label.index for label in labels if _folded(label.name) == wanted]
    return matches[0] if len(matches) == 1 else None


def _from_lines(text: str) -> Iterable[tuple[str, str | None]]:
    return [(line, None) for line in text.splitlines()]


def _from_json(text: str) -> Iterable[tuple[str, str | None]]:
    content = json.loads(text)
    if isinstance(content, dict):
        indexes = sorted(int(key) for key in content)
        if indexes != list(range(len(content))):
            raise ValueError("the indexes must run from 0 upwards without a gap")
        content = [content[str(index)] for index in indexes]
    if not isinstance(content, list):
        raise ValueError("expected a list, or an object from index to name")
    return [_json_label(entry) for entry in content]


def _json_label(entry: object) -> tuple[str, str | None]:
    if isinstance(entry, str):
        return entry, None
    if isinstance(entry, dict) and entry.keys() <= {"name", "synset"}:
        return entry["name"], entry.get("synset")
    raise ValueError("each entry must be a name, or an object of name and synset")


def _from_csv(text: str) -> Iterable[tuple[str, str | None]]:
    rows = csv.DictReader(io.StringIO(text))
    if "name" not in (rows.fieldnames or ()):
        raise ValueError("the header has no column called name")
    return [(row["name"] or "", row.get("synset")) for row in rows]


def _folded(name: str) -> str:
    return name.replace("_", " ").casefold()


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return f"label {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}"
    if isinstance(error, OSError):
        return error.strerror or "cannot be read"
    return first_line(error)

"""Classes of lists and objects of JSON, also as Hugging Face, timm and Keras write them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from training.data.labels.rows import SYNSET, Row
from training.data.labels.titles import ID_NAMES, NAME_NAMES, SYNSET_NAMES, as_title


def from_json(text: str) -> Iterable[Row]:
    return from_value(json.loads(text, object_pairs_hook=_unique_members))


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} occurs more than once")
    return members


def from_value(content: object) -> list[Row]:
    if isinstance(content, list):
        return [_entry(entry) for entry in content]
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
            return from_value(value)
    return _from_map(content)


def _from_timm(names: object, descriptions: object) -> list[Row]:
    rows = from_value(names)
    if not isinstance(descriptions, dict):
        return rows
    return [
        Row(
            str(descriptions.get(row.name, row.name)),
            row.name if SYNSET.fullmatch(row.name) else None,
            row.index,
        )
        for row in rows
    ]


def _from_map(content: object) -> list[Row]:
    if not isinstance(content, dict):
        raise ValueError("expected an object from index to name")

    keys_count = all(re.fullmatch(r"\d+", key) for key in content)
    if not keys_count and all(re.fullmatch(r"\d+", str(value)) for value in content.values()):
        content = {name: int(index) for name, index in content.items()}
    values_count = all(type(value) is int for value in content.values())
    if keys_count and values_count and any(int(key) != content[key] for key in content):
        raise ValueError("both sides are numbers, so it is unclear which are names; use a list")
    if keys_count and not values_count:
        return [replace(_entry(value), index=int(key)) for key, value in content.items()]
    if values_count:
        return [Row(name, index=index) for name, index in content.items()]
    raise ValueError("expected an object from index to name, or from name to index")


def _check_inverse(rows: list[Row], inverse: object) -> None:
    if not isinstance(inverse, dict):
        return
    for row in rows:
        if row.name in inverse and str(inverse[row.name]) != str(row.index):
            raise ValueError(
                f"id2label gives {row.name!r} the id {row.index}, label2id {inverse[row.name]}"
            )


def _entry(entry: object) -> Row:
    if isinstance(entry, str):
        return Row(entry)
    if isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry):
        synset, name = entry
        return Row(name, synset)
    if isinstance(entry, dict):
        members = {as_title(key): value for key, value in entry.items()}
        name, index, synset = (
            next((members.pop(title) for title in titles if title in members), None)
            for titles in (NAME_NAMES, ID_NAMES, SYNSET_NAMES)
        )
        if members:
            raise ValueError("each entry may have a name, an id and a synset, and nothing else")
        if isinstance(name, str) and isinstance(synset, str | None) and _is_index(index):
            return Row(name, synset, index)
    raise ValueError("each entry must be a name, or an object with name and optional id and synset")


def _is_index(value: object) -> bool:
    return value is None or type(value) is int

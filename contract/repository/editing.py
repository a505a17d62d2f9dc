"""Writes changes into `repository.toml`: comments stay, and two writers do not overwrite one another."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import InlineTable

from contract.errors import RepositoryFileUnwritable
from contract.repository.changes import Change, RepositoryState
from contract.repository.file import HEADER, ReadRepositoryFile, parse_repository_file
from contract.repository.policy import Decision, decide
from contract.repository.writing import locked, replace_file
from contract.versions import sha256


@dataclass(frozen=True, slots=True)
class Written:
    """Digests of the file's content, 64 hexadecimal digits; None where there was no file."""

    before_sha256: str | None
    after_sha256: str | None


def write_change(file: ReadRepositoryFile, change: Change) -> Written:
    """Writes a change atomically, unless the file has changed since it was read.

    Raises:
        RepositoryFileUnwritable: it cannot be written, or somebody else has changed it.
        RepositoryFileInvalid: the result would not be valid; nothing is written.
    """
    before = None if file.text is None else sha256(file.text)
    if not change.updates:
        return Written(before, before)
    text = edited_text(file, change)
    parse_repository_file(text, str(file.path))
    try:
        _replace(file, text)
    except OSError as error:
        raise RepositoryFileUnwritable(
            f"{file.path}: cannot be written: {error.strerror}. To make the change, write into it:\n"
            f"{as_lines(change)}"
        ) from error
    return Written(before, sha256(text))


def preview(state: RepositoryState, change: Change) -> Decision:
    """Returns what will be served after the change, as far as manifests tell."""
    parsed = parse_repository_file(edited_text(state.file, change), str(state.file.path))
    return decide(parsed, state.listing, {}, state.decision.default)


def edited_text(file: ReadRepositoryFile, change: Change) -> bytes:
    """Returns the content of the file after the change."""
    if file.text is None:
        document = tomlkit.document()
        document.add(tomlkit.comment(HEADER))
    else:
        document = tomlkit.parse(file.text.decode("utf-8-sig"))
    for place, value in change.updates.items():
        if value is None:
            _remove(document, place)
        else:
            _put(document, place, value)
    return tomlkit.dumps(document).encode()


def as_lines(change: Change) -> str:
    """Returns the change as lines of TOML, for somebody who has to write them."""
    return "\n".join(
        f"{tomlkit.key(place).as_string()} = {tomlkit.item(value).as_string()}"
        if value is not None
        else f"# remove {'.'.join(place)}"
        for place, value in change.updates.items()
    )


def _put(document: MutableMapping[str, Any], place: tuple[str, ...], value: Any) -> None:
    table: Any = document
    for depth, key in enumerate(place[:-1]):
        if key not in table:
            if depth == 0:
                table[key] = tomlkit.table(is_super_table=True)
            elif depth == 1 and not isinstance(table, InlineTable):
                table[key] = tomlkit.table()
            else:
                table[key] = tomlkit.inline_table()
        table = table[key]
    table[place[-1]] = value


def _remove(table: MutableMapping[str, Any], place: tuple[str, ...]) -> None:
    key, *rest = place
    if key not in table:
        return
    if rest:
        _remove(table[key], tuple(rest))
    if not rest or not table[key]:  # nor does an empty table say anything
        del table[key]


def _replace(file: ReadRepositoryFile, text: bytes) -> None:
    path = file.path.resolve()  # a link stays one
    with locked(path.parent):
        _check_unchanged(path, file.text)
        replace_file(path, text)


def _check_unchanged(path: Path, text: bytes | None) -> None:
    try:
        now: bytes | None = path.read_bytes()
    except FileNotFoundError:
        now = None
    if now != text:
        raise RepositoryFileUnwritable(
            f"{path}: somebody else changed it while it was being edited; try again"
        )

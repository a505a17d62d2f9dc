"""Writes changes into `repository.toml`: comments stay, and two writers do not overwrite one another."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Comment, InlineTable, Table

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
    """Returns what will be served after the change, as far as manifests and known failures tell.

    A version that the file names may have been repaired since it failed.
    """
    parsed = parse_repository_file(edited_text(state.file, change), str(state.file.path))
    failures = {
        (name, number): reason
        for (name, number), reason in state.failures.items()
        if number not in parsed.policy(name).named()
    }
    return decide(parsed, state.listing, failures, state.decision.default)


def edited_text(file: ReadRepositoryFile, change: Change) -> bytes:
    """Returns the content of the file after the change.

    Raises:
        RepositoryFileUnwritable: the file is written in a way that cannot be edited.
    """
    before = f"# {HEADER}\n" if file.text is None else file.text.decode("utf-8-sig")
    after = _edited(before, change)
    if after is None or _content(after) != _expected(before, change):
        raise RepositoryFileUnwritable(
            f"{file.path}: cannot be edited in the way that it is written. To make the change, write "
            f"into it:\n{as_lines(change)}"
        )
    return after.encode()


def as_lines(change: Change) -> str:
    """Returns the change as lines of TOML, for somebody who has to write them."""
    tables: dict[tuple[str, ...], list[str]] = {}
    for place, value in change.updates.items():
        depth = min(2, len(place) - 1)
        lines = tables.setdefault(place[:depth], [])
        key = tomlkit.key(place[depth:]).as_string()
        lines.append(
            f"# remove {key}" if value is None else f"{key} = {tomlkit.item(value).as_string()}"
        )
    blocks = [
        [f"[{tomlkit.key(table).as_string()}]", *lines] if table else lines
        for table, lines in sorted(tables.items())
    ]
    return "\n".join(line for block in blocks for line in block)


def _edited(text: str, change: Change) -> str | None:
    try:
        document = tomlkit.parse(text)
        for place, value in change.updates.items():
            if value is None:
                _remove(document, place)
            else:
                _put(document, place, value)
        edited = tomlkit.dumps(document)
        # tomlkit puts a new table between keys such as models.cats.answer, which then belong to it.
        tomllib.loads(edited.replace("\r\n", "\n"))
    except (TOMLKitError, tomllib.TOMLDecodeError):
        return None
    return edited.replace("\r\n", "\n").replace("\n", "\r\n") if "\r\n" in text else edited


def _content(text: str) -> dict[str, Any]:
    return _without_empty_tables(tomllib.loads(text.replace("\r\n", "\n")))


def _expected(text: str, change: Change) -> dict[str, Any]:
    document = _content(text)
    for place, value in change.updates.items():
        table = document
        for key in place[:-1]:
            table = table.setdefault(key, {})
        table[place[-1]] = {} if value is None else value
    return _without_empty_tables(document)


def _without_empty_tables(table: Mapping[str, Any]) -> dict[str, Any]:
    filled = {
        key: _without_empty_tables(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
    }
    return {key: value for key, value in filled.items() if value != {}}


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
    if not rest or not (table[key] or _has_comments(table[key])):
        del table[key]


def _has_comments(table: object) -> bool:
    return isinstance(table, Table) and any(
        isinstance(item, Comment) for _, item in table.value.body
    )


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

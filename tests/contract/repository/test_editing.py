"""How changes are written: what is kept, what is refused, and several writers at once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from contract.errors import RepositoryFileInvalid, RepositoryFileUnwritable
from contract.repository import changes, editing
from contract.repository.changes import Change, RepositoryState
from contract.repository.editing import as_lines, edited_text, write_change
from contract.repository.file import ReadRepositoryFile, parse_repository_file, read_repository_file
from contract.repository.policy import decide
from contract.repository.writing import replace_file
from tests.contract.repository.states import Edited, listing

CATS = listing({"cats": [1, 2, 3], "dogs": [1]})
PIN = Change({("models", "cats", "answer"): 2}, "pinned")
UNPIN = Change({("models", "cats", "answer"): None}, "unpinned")


def edit(text: str, *steps: Change) -> str:
    for change in steps:
        file = ReadRepositoryFile(
            Path("F"), text.encode(), parse_repository_file(text.encode(), "F")
        )
        text = edited_text(file, change).decode()
    return text


def test_comments_order_and_formatting_stay():
    text = """\
# ours
default   = "cats"   # never dogs

[models.dogs]
load = "none"

[models.cats]
answer = 1   # hold until Monday
load = [ 1,
         3 ] # two
# the end
"""
    assert edit(text, PIN) == text.replace("answer = 1", "answer = 2")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("models.cats.answer = 1 # a\n", "models.cats.answer = 2 # a\n"),
        ("models = { cats = { answer = 1 } }\n", "models = { cats = { answer = 2 } }\n"),
        ("[models]\ncats = { answer = 1 }\n", "[models]\ncats = { answer = 2 }\n"),
        ("[models.cats]\r\nanswer = 1\r\n", "[models.cats]\r\nanswer = 2\r\n"),
        ('default = "cats"\r\n', 'default = "cats"\r\n\r\n[models.cats]\r\nanswer = 2\r\n'),
        ('default = "cats"', 'default = "cats"\n[models.cats]\nanswer = 2\n'),
    ],
)
def test_each_way_of_writing_a_table_stays(before, after):
    assert edit(before, PIN) == after


def test_an_empty_table_goes_unless_it_has_a_comment():
    assert "cats" not in edit("[models.cats]\nanswer = 1\n", UNPIN)
    assert edit("[models.cats]\n# ours\nanswer = 1\n", UNPIN) == "[models.cats]\n# ours\n"


LAYOUTS = (
    "[models.cats]\n{}",
    '[models.dogs]\nload = "none"\n\n[models.cats]\n{}',
    '[models.cats]\n{}\n[models.dogs]\nload = "none"\n[models.cats.require]\nmin_test_pictures = 3\n',
    '[models.cats.require]\nlabels = "any"\n[models.cats]\n{}',
    "[models]\n[models.cats]\n{}\n  [models.cats.aliases]\n  canary = 2\n",
    "[models.cats.aliases]\nstable = 1\n[models.cats]\n{}",
)
KEYS = ("", "answer = 1\n", "load = { newest = 2 }\n", "load = [1,\n 2, # two\n]\n")
UPDATES: tuple[dict[tuple[str, ...], Any], ...] = (
    {("default",): "dogs"},
    {("models", "cats", "answer"): 2, ("models", "cats", "previous"): 1},
    {("models", "cats", "answer"): None},
    {("models", "cats", "aliases", "stable"): 2},
    {("models", "cats", "aliases", "stable"): None},
    {("models", "cats", "load"): [1, 3]},
    {("models", "cats", "load"): None},
    {("models", "dogs", "load"): "none"},
    {("models", "dogs", "load"): None},
    {("models", "new.x", "answer"): 2},
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_changes_do_what_they_say_and_nothing_else(layout):
    # edited_text raises if the result is anything but the content with the updates.
    for keys, first, second in product(KEYS, UPDATES, UPDATES):
        text = layout.format(keys)
        edited = edit(text, Change(first, ""), Change(second, ""))
        assert parse_repository_file(edited.encode(), "F") is not None


def test_a_file_that_cannot_be_edited_is_left_alone_and_the_lines_are_named(tmp_path):
    # tomlkit puts the new table between the two keys.
    text = 'default = "cats"\nmodels.cats.answer = 2\nmodels.cats.aliases = { stable = 1 }\n'
    cats = Edited(tmp_path, text, CATS)
    with pytest.raises(RepositoryFileUnwritable, match=r'\[models\.dogs\]\nload = "none"'):
        cats.apply(changes.unload, "dogs")
    assert cats.text == text


def test_a_result_that_would_not_be_valid_is_not_written(tmp_path):
    cats = Edited(tmp_path, 'default = "cats"\n', CATS)
    with pytest.raises(RepositoryFileInvalid, match="there is no alias 'stable'"):
        write_change(cats.state.file, Change({("models", "cats", "answer"): "stable"}, ""))
    assert cats.text == 'default = "cats"\n'


def test_a_new_file_says_what_it_is(tmp_path):
    cats = Edited(tmp_path, None, CATS)
    written = write_change(cats.state.file, PIN)
    assert cats.text.startswith("# What is served from the model repository;")
    assert written.before_sha256 is None
    assert len(written.after_sha256 or "") == 64
    assert cats.path.stat().st_mode & 0o777 == 0o644


def test_the_mode_stays_and_nothing_is_left_behind(tmp_path):
    cats = Edited(tmp_path, "", CATS)
    cats.path.chmod(0o664)
    cats.apply(changes.pin, "cats", 2)
    assert cats.path.stat().st_mode & 0o777 == 0o664
    assert [path.name for path in tmp_path.iterdir()] == ["repository.toml"]


def test_a_link_stays_one(tmp_path):
    target = tmp_path / "elsewhere.toml"
    target.write_text("")
    cats = Edited(tmp_path, None, CATS)
    cats.path.symlink_to(target)
    cats.apply(changes.pin, "cats", 2)
    assert cats.path.is_symlink()
    assert "answer = 2" in target.read_text()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EBUSY, errno.EACCES])
def test_where_nothing_can_be_written_the_file_and_the_lines_are_named(
    tmp_path, monkeypatch, number
):
    cats = Edited(tmp_path, 'default = "cats"\n', CATS)

    def refuse(*_: object) -> None:
        raise OSError(number, "not here")

    monkeypatch.setattr(editing, "replace_file", refuse)
    with pytest.raises(RepositoryFileUnwritable) as caught:
        write_change(cats.state.file, PIN)
    assert str(caught.value) == (
        f"{cats.path}: cannot be written: not here. To make the change, write into it:\n"
        "[models.cats]\nanswer = 2"
    )
    assert cats.text == 'default = "cats"\n'


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path):
    file = read_repository_file(tmp_path / "missing" / "repository.toml")
    with pytest.raises(
        RepositoryFileUnwritable, match=r"missing/repository\.toml: cannot be written"
    ):
        write_change(file, PIN)


@pytest.mark.parametrize("other", [b"", b'default = "dogs"\n', None])
def test_a_file_that_somebody_else_changed_is_not_overwritten(tmp_path, other):
    cats = Edited(tmp_path, 'default = "cats"\n', CATS)
    read = cats.state.file
    if other is None:
        cats.path.unlink()
    else:
        cats.path.write_bytes(other)
    with pytest.raises(RepositoryFileUnwritable, match=r"somebody else changed it .* try again"):
        write_change(read, PIN)
    assert (cats.path.read_bytes() if cats.path.exists() else None) == other


def test_lines_to_write_are_tables_that_can_be_pasted():
    change = Change(
        {
            ("models", "cats", "aliases", "stable"): 3,
            ("models", "cats", "previous"): None,
            ("models", "a.b", "load"): [1, 2],
            ("default",): "cats",
        },
        "",
    )
    lines = as_lines(change)
    assert lines.splitlines() == [
        'default = "cats"',
        '[models."a.b"]',
        "load = [1, 2]",
        "[models.cats]",
        "aliases.stable = 3",
        "# remove previous",
    ]
    assert tomllib.loads(lines)["models"]["cats"] == {"aliases": {"stable": 3}}


N_WRITERS, N_CHANGES = 8, 25


def _set_aliases(path: Path, writer: int) -> None:
    for i in range(N_CHANGES):
        while True:
            file = read_repository_file(path)
            state = RepositoryState(path.parent, file, CATS, decide(file.parsed, CATS, {}))
            try:
                write_change(file, changes.alias(state, "cats", f"w{writer}-{i}", 1))
            except RepositoryFileUnwritable:
                continue  # another one was faster
            break


def test_many_writers_lose_no_change(tmp_path):
    path = tmp_path / "repository.toml"
    # Not "fork": the children would have sessions whose threads they lack.
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_set_aliases, args=(path, writer)) for writer in range(N_WRITERS)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * N_WRITERS

    written = read_repository_file(path).parsed.policy("cats").aliases
    expected = {f"w{writer}-{i}" for writer in range(N_WRITERS) for i in range(N_CHANGES)}
    assert set(written) == expected
    assert [one.name for one in tmp_path.iterdir()] == ["repository.toml"]


def test_a_file_keeps_its_owner(tmp_path, monkeypatch):
    path = tmp_path / "repository.toml"
    path.touch(mode=0o600)
    owners = []
    monkeypatch.setattr(os, "chown", lambda _path, uid, gid: owners.append((uid, gid)))

    replace_file(path, b"")

    assert owners == [(path.stat().st_uid, path.stat().st_gid)]

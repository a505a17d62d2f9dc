"""What repository.toml may say, and the messages where it says something else."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import RepositoryFileInvalid
from contract.repository.file import (
    MAX_FILE_BYTES,
    Newest,
    parse_repository_file,
    read_repository_file,
)


def test_every_key_is_read():
    parsed = parse_repository_file(
        b'default = "cats"\n[models.cats]\nload = { newest = 2 }\nanswer = "stable"\nprevious = 2\n'
        b'aliases = { stable = 3 }\nrequire = { labels = "same", min_top1_percent = 80 }\n',
        "F",
    )
    policy = parsed.policy("cats")
    assert parsed.default == "cats"
    assert policy.load == Newest(newest=2)
    assert policy.pinned() == 3
    assert policy.named() == {3}
    assert policy.require.min_top1_percent == 80.0


def test_a_model_that_is_not_mentioned_has_the_default_policy():
    policy = parse_repository_file(b"", "F").policy("cats")
    assert (policy.load, policy.answer, policy.pinned()) == ("answering", "latest", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models = 3", "models: must be a table, got 3"),
        ("[[models]]\nx = 1", "models: must be a table, got [{'x': 1}]"),
        ("[models]\ncats = 3", "models.cats: must be a table, got 3"),
        ("[models.cats]\nrequire = 3", "models.cats.require: must be a table, got 3"),
        ("[models.cats]\naliases = 3", "models.cats.aliases: must be a table, got 3"),
        ("[models.cats]\nprevious = 0", "models.cats.previous: must be at least 1, got 0"),
        (
            '[models.cats]\nprevious = "x"',
            "models.cats.previous: must be a whole number, got 'x'",
        ),
        (
            "[models.cats]\nload = { newest = 2000 }",
            "models.cats.load.newest: must be at most 1000, got 2000",
        ),
        (
            "[models.cats]\nload = { newest = true }",
            "models.cats.load.newest: must be a whole number, got True",
        ),
        (
            "[models.cats]\nload = {}",
            'models.cats.load: must be "answering", "all", "none", { newest = N } or a list of '
            "version numbers, got a table",
        ),
        (
            '[models.cats]\nanswer = "stable"',
            'models.cats.answer: must be "latest", a version number or one of the aliases; there is '
            "no alias 'stable'",
        ),
        (
            "[models.cats.require]\nmin_top1_percent = 180.0",
            "models.cats.require.min_top1_percent: must be at most 100, got 180.0",
        ),
        (
            '[models.cats.require]\nmin_top1_percent = "x"',
            "models.cats.require.min_top1_percent: must be a number, got 'x'",
        ),
        (
            '[models.cats.require]\nlabels = "all"',
            "models.cats.require.labels: must be 'keep', 'same' or 'any', got 'all'",
        ),
        ('defaul = "x"', "defaul: unknown key; the keys are default, models"),
        (
            "[models.cats]\nanswers = 1",
            "models.cats.answers: unknown key; the keys are load, answer, previous, aliases, require",
        ),
        (f"a = {'[' * 5000}", "not TOML: nested too deeply"),
    ],
)
def test_what_is_wrong_is_named(text, message):
    with pytest.raises(RepositoryFileInvalid) as caught:
        parse_repository_file(text.encode(), "F")
    assert str(caught.value) == f"F: {message}"


@pytest.mark.parametrize(
    "text",
    [
        'default = "x"\ndefault = "y"',
        "default = ",
        f"[models.cats]\nanswer = {'9' * 5000}",
        "[models.cats]\naliases = { Stable = 3 }",
        "[models.cats]\naliases = { latest = 3 }",
        "[models.cats]\nload = []",
        "[models.cats]\nanswer = true",
        '[models."a b"]',
        "[models.cats.require]\nmax_top1_drop_percent = nan",
    ],
)
def test_other_values_are_refused(text):
    with pytest.raises(RepositoryFileInvalid, match=r"^F: "):
        parse_repository_file(text.encode(), "F")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    try:
        parse_repository_file(data, "F")
    except RepositoryFileInvalid as error:
        assert str(error).startswith("F: ")  # noqa: PT017


def test_a_byte_order_mark_and_windows_line_ends_are_read():
    parsed = parse_repository_file(b'\xef\xbb\xbf# x\r\ndefault = "cats"\r\n', "F")
    assert parsed.default == "cats"


def test_a_missing_file_has_no_text(tmp_path):
    assert read_repository_file(tmp_path / "missing.toml").text is None


def test_a_folder_or_a_huge_file_is_refused(tmp_path):
    with pytest.raises(RepositoryFileInvalid, match="cannot be read: Is a directory"):
        read_repository_file(tmp_path)
    huge = tmp_path / "huge.toml"
    huge.touch()
    os.truncate(huge, MAX_FILE_BYTES + 1)
    with pytest.raises(RepositoryFileInvalid, match="larger than 1048576 bytes"):
        read_repository_file(huge)


def test_a_link_to_a_missing_file_is_not_a_missing_file(tmp_path):
    (tmp_path / "repository.toml").symlink_to("gone.toml")
    with pytest.raises(RepositoryFileInvalid, match="is a link to a file that is missing"):
        read_repository_file(tmp_path / "repository.toml")


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RepositoryFileInvalid, match="is a pipe"):
        read_repository_file(tmp_path / "pipe")

"""A number is never given twice, and the first model of a repository is its default."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.errors import ChangeRefused, NumbersInvalid, VersionRemoved
from contract.repository.file import REPOSITORY_FILE, read_repository_file
from contract.repository.numbers import NUMBERS_FILE, next_number
from contract.repository.publishing import place_version
from contract.repository.removal import remove_version
from contract.versions import read_version
from tests import tinymodel

Check = Callable[[Path], object]


def _accept(_: Path) -> None:
    pass


@pytest.fixture
def publish(tmp_path):
    def one(name: str, number: int, *, replace: bool = False, check: Check = _accept) -> Path:
        source = Path(tempfile.mkdtemp(dir=tmp_path))
        tinymodel.write_version(source, name, number)
        version = read_version(source, name, number)
        return place_version(
            tmp_path / "models",
            version.manifest,
            dict(version.contents),
            check,
            replace=replace,
        )

    return one


def remove(models: Path, name: str, number: int) -> None:
    remove_version(models, models / REPOSITORY_FILE, name, number)


def test_a_removed_number_is_refused_and_the_next_one_is_named(publish, tmp_path):
    models = tmp_path / "models"
    for number in (1, 2):
        publish("cats", number)
    remove(models, "cats", 1)
    assert not (models / "cats" / "1").exists()
    with pytest.raises(VersionRemoved, match=r"cats/1 was removed; .* the next is 3"):
        publish("cats", 1, replace=True)


def test_the_newest_number_is_not_given_again_after_it_was_removed(publish, tmp_path):
    models = tmp_path / "models"
    for number in (1, 2):
        publish("cats", number)
    (models / REPOSITORY_FILE).write_text('default = "cats"\n[models.cats]\nanswer = 1\n')
    remove(models, "cats", 2)
    assert next_number(models, "cats") == 3


def test_a_number_of_a_version_copied_by_hand_is_known_after_it_was_removed(publish, tmp_path):
    models = tmp_path / "models"
    for number in (1, 2):
        publish("cats", number)
    (models / "cats" / NUMBERS_FILE).unlink()  # an older release published them
    remove(models, "cats", 1)
    with pytest.raises(VersionRemoved):
        publish("cats", 1)


def test_a_version_that_is_there_can_be_replaced(publish):
    folder = publish("cats", 1)
    assert publish("cats", 1, replace=True) == folder


@pytest.mark.parametrize("content", [b"1\n\xff\n", b"one\n", b"1 2\n", b"1\n\n2\n", b"-1\n", b"\0"])
def test_a_garbled_record_stops_publishing_with_the_line(publish, tmp_path, content):
    publish("cats", 1)
    (tmp_path / "models" / "cats" / NUMBERS_FILE).write_bytes(content)
    with pytest.raises(NumbersInvalid, match=r"\.numbers: line \d+ is not a version number"):
        next_number(tmp_path / "models", "cats")
    with pytest.raises(NumbersInvalid):
        publish("cats", 2)
    assert not (tmp_path / "models" / "cats" / "2").exists()


def test_what_answers_or_is_named_is_not_removed(publish, tmp_path):
    models = tmp_path / "models"
    for number in (1, 2, 3):
        publish("cats", number)
    (models / REPOSITORY_FILE).write_text("[models.cats]\nprevious = 2\naliases = { old = 1 }\n")
    for number, reason in ((3, "answers"), (2, "rollback"), (1, "has the alias old")):
        with pytest.raises(ChangeRefused, match=f"cats/{number} .*{reason}"):
            remove(models, "cats", number)
    assert sorted(one.name for one in (models / "cats").iterdir()) == [".numbers", "1", "2", "3"]


def test_the_first_version_of_a_repository_makes_its_model_the_default(publish, tmp_path):
    path = tmp_path / "models" / REPOSITORY_FILE
    publish("cats", 1)
    assert read_repository_file(path).parsed.default == "cats"
    publish("dogs", 1)
    assert read_repository_file(path).parsed.default == "cats"


@pytest.mark.parametrize("text", ["", "# ours\n", "not TOML"])
def test_publishing_never_changes_a_file_that_is_there(publish, tmp_path, text):
    path = tmp_path / "models" / REPOSITORY_FILE
    path.parent.mkdir()
    path.write_text(text)
    publish("cats", 1)
    assert path.read_text() == text


def test_a_version_that_fails_its_check_leaves_nothing(publish, tmp_path):
    def refuse(_: Path) -> None:
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        publish("cats", 1, check=refuse)
    assert list((tmp_path / "models").iterdir()) == []
    assert next_number(tmp_path / "models", "cats") == 1

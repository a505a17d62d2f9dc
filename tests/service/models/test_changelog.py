from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from contract.repository.file import ReadRepositoryFile, parse_repository_file
from contract.repository.policy import Decision, ModelDecision
from service.models.changelog import (
    MAX_ENTRIES,
    ChangeLog,
    RepositoryChange,
    changes_between,
    file_sha256,
)
from service.models.repository import Repository

NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


def repository(text: str | None = None, default: str = "cats", **answers: int | None) -> Repository:
    """A repository that was decided from a file with this text; nothing is loaded."""
    path = Path("repository.toml")
    content = None if text is None else text.encode()
    file = ReadRepositoryFile(path, content, parse_repository_file(content or b"", str(path)))
    models = {name: ModelDecision(answer) for name, answer in answers.items()}
    return Repository([], Decision(default, models), file=file)


def found(before: Repository, after: Repository, changes: ChangeLog) -> list[tuple[object, ...]]:
    return [
        (one.who, one.verb, one.model, one.versions)
        for one in changes_between(before, after, changes)
    ]


def test_change_log_entry_says_who_what_and_when(caplog):
    changes = ChangeLog(lambda: NOON)
    change = RepositoryChange("10.0.0.1 (ann)", "pin", model="cats", versions=(None, 3))

    with caplog.at_level("INFO"):
        entry = changes.record(change)

    assert changes.entries() == [entry]
    assert entry == {
        "time": "2026-11-29T12:00:00.000+00:00",
        "who": "10.0.0.1 (ann)",
        "verb": "pin",
        "outcome": "changed",
        "model": "cats",
        "version_before": None,
        "version_after": "3",
        "file_sha256_before": None,
        "file_sha256_after": None,
        "summary": "",
    }
    (line,) = caplog.records
    assert (line.message, line.who, line.version_after) == (
        "changed the model repository",
        "10.0.0.1 (ann)",
        "3",
    )


@pytest.mark.parametrize("outcome", ["refused", "failed"])
def test_change_log_attempt_is_a_warning(caplog, outcome):
    ChangeLog().record(RepositoryChange("-", "pin", outcome))

    (line,) = caplog.records
    assert (line.levelname, line.message) == ("WARNING", "did not change the model repository")


def test_change_log_keeps_the_newest_entries_newest_first():
    changes = ChangeLog()
    for number in range(MAX_ENTRIES + 2):
        changes.record(RepositoryChange("-", "pin", versions=(None, number)))

    entries = changes.entries()

    assert len(entries) == MAX_ENTRIES
    assert (entries[0]["version_after"], entries[-1]["version_after"]) == (
        str(MAX_ENTRIES + 1),
        "2",
    )


def test_changes_by_an_edit_name_the_file():
    before, after = repository(cats=1, dogs=1), repository("# new", cats=2, dogs=1)

    (change,) = changes_between(before, after, ChangeLog())

    assert (change.who, change.model, change.versions) == ("repository.toml", "cats", (1, 2))
    assert change.digests == (None, file_sha256(after.file))


def test_changes_by_a_new_version_are_published():
    before, after = repository(cats=1), repository(cats=2, dogs=1)

    assert found(before, after, ChangeLog()) == [
        ("published", "answer", "cats", (1, 2)),
        ("published", "answer", "dogs", (None, 1)),
    ]


def test_changes_of_the_default_are_found():
    before, after = (
        repository("#", "cats", cats=1, dogs=1),
        repository("##", "dogs", cats=1, dogs=1),
    )

    assert found(before, after, ChangeLog()) == [
        ("repository.toml", "default", "dogs", (None, None))
    ]


def test_changes_that_only_edit_the_file_are_found():
    before, after = repository("#", cats=1), repository("##", cats=1)

    assert found(before, after, ChangeLog()) == [("repository.toml", "edit", None, (None, None))]


def test_changes_of_this_process_are_not_found_again():
    changes = ChangeLog()
    before, after = repository("#", cats=1), repository("##", cats=2)
    with changes.writing(file_sha256(after.file) or ""):
        pass

    assert found(before, after, changes) == []


def test_changes_that_are_adopted_while_they_are_written_are_not_found_again():
    changes = ChangeLog()
    before, after = repository("#", cats=1), repository("##", cats=2)

    with changes.writing(file_sha256(after.file) or ""):
        assert found(before, after, changes) == []


def test_changes_that_could_not_be_written_and_somebody_else_makes_are_found():
    changes = ChangeLog()
    before, after = repository("#", cats=1), repository("##", cats=2)
    with pytest.raises(OSError, match="full"), changes.writing(file_sha256(after.file) or ""):
        raise OSError("full")

    assert found(before, after, changes) == [("repository.toml", "answer", "cats", (1, 2))]


def test_changes_undone_by_somebody_else_are_found():
    changes = ChangeLog()
    first, second = repository("#", cats=1), repository("##", cats=2)
    with changes.writing(file_sha256(second.file) or ""):
        pass
    found(first, second, changes)
    found(second, first, changes)

    assert found(first, second, changes) == [("repository.toml", "answer", "cats", (1, 2))]


def test_changes_that_change_nothing_are_none():
    assert found(repository("#", cats=1), repository("#", cats=1), ChangeLog()) == []

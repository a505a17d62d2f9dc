"""What changed in the model repository, who changed it and when.

The newest entries stay in memory, for the admin port. Every entry is also a line in the log, which
outlives the process.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from contract.repository.file import ReadRepositoryFile
from contract.versions import sha256
from service.models.repository import Repository

log = logging.getLogger(__name__)

MAX_ENTRIES: Final = 1_000

Outcome = Literal["changed", "unchanged", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class RepositoryChange:
    """A change, or an attempt.

    Attributes:
        who: a client of the admin port; "repository.toml" if the file was edited by other means;
            "published" if a new version brought the change.
        verb: what was asked for, such as "pin". Without a client: "answer" or "default" for what the
            change brought, "edit" if it brought nothing.
        versions: the versions of the model that answered before and after it.
        digests: SHA-256 of repository.toml before and after it, None where there is no file.
        summary: what it does, or why it was not done; one sentence.
    """

    who: str
    verb: str
    outcome: Outcome = "changed"
    model: str | None = None
    versions: tuple[int | None, int | None] = (None, None)
    digests: tuple[str | None, str | None] = (None, None)
    summary: str = ""

    def document(self) -> dict[str, Any]:
        before, after = (None if one is None else str(one) for one in self.versions)
        return {
            "who": self.who,
            "verb": self.verb,
            "outcome": self.outcome,
            "model": self.model,
            "version_before": before,
            "version_after": after,
            "file_sha256_before": self.digests[0],
            "file_sha256_after": self.digests[1],
            "summary": self.summary,
        }


class ChangeLog:
    """The newest changes. Only `writing` may be used off the event loop."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._entries: deque[dict[str, Any]] = deque(maxlen=MAX_ENTRIES)
        self._written: deque[str] = deque(maxlen=MAX_ENTRIES)  # and not adopted yet
        self._lock = threading.Lock()

    def record(self, change: RepositoryChange) -> dict[str, Any]:
        """Keeps and logs a change; returns its entry, which is a JSON document."""
        document = change.document()
        entry = {"time": self._clock().isoformat(timespec="milliseconds"), **document}
        self._entries.append(entry)
        if change.outcome in ("changed", "unchanged"):
            log.info("changed the model repository", extra=document)
        else:
            log.warning("did not change the model repository", extra=document)
        return entry

    def entries(self) -> list[dict[str, Any]]:
        """Returns the entries, newest first."""
        return list(reversed(self._entries))

    @contextmanager
    def writing(self, file_sha256: str) -> Iterator[None]:
        """While it is open, this process writes a repository.toml with this digest, and records it."""
        # Noted before it is written, because a poll may read it at once.
        with self._lock:
            self._written.append(file_sha256)
        try:
            yield
        except BaseException:
            with self._lock, suppress(ValueError):
                self._written.remove(file_sha256)
            raise

    def is_own(self, file_sha256: str | None) -> bool:
        """Returns whether a repository.toml that is adopted now was written by this process."""
        with self._lock:
            if file_sha256 not in self._written:
                return False
            while self._written.popleft() != file_sha256:
                pass  # replaced before it was adopted
        return True


def changes_between(
    before: Repository, after: Repository, changes: ChangeLog
) -> list[RepositoryChange]:
    """Returns what somebody else changed, when `after` is adopted."""
    digests = file_sha256(before.file), file_sha256(after.file)
    edited = digests[0] != digests[1]
    if edited and changes.is_own(digests[1]):
        return []

    who = "repository.toml" if edited else "published"
    answers = [
        {name: one.answer for name, one in repository.decision.models.items()}
        for repository in (before, after)
    ]
    found = [
        RepositoryChange(who, "answer", model=name, versions=versions, digests=digests)
        for name in sorted({*answers[0], *answers[1]})
        if (versions := (answers[0].get(name), answers[1].get(name)))[0] != versions[1]
    ]
    if before.default_name != after.default_name:
        found.append(RepositoryChange(who, "default", model=after.default_name, digests=digests))
    return found or ([RepositoryChange(who, "edit", digests=digests)] if edited else [])


def file_sha256(file: ReadRepositoryFile | None) -> str | None:
    return None if file is None or file.text is None else sha256(file.text)

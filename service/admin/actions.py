"""What the admin port needs from the running service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contract.repository.file import ReadRepositoryFile
from contract.repository.listing import Listing
from contract.repository.policy import Decision, ModelDecision, VersionKey
from service.admin.token import AdminToken
from service.models.changelog import ChangeLog, file_sha256
from service.models.repository import Repository
from service.system.metrics import Metrics


@dataclass(frozen=True, slots=True)
class ServedState:
    """What is served now.

    Attributes:
        file: repository.toml as it was last applied.
        decision: what followed from it.
        loaded: the versions that are loaded.
        problems: what cannot be served as it should, and why; one sentence each.
    """

    file: ReadRepositoryFile | None
    decision: Decision
    loaded: frozenset[VersionKey]
    problems: tuple[str, ...] = ()

    @classmethod
    def of(cls, repository: Repository, not_adopted: str | None) -> ServedState:
        problems = [*repository.problems, *([not_adopted] if not_adopted else [])]
        loaded = frozenset(version.key for version in repository.versions())
        return cls(repository.file, repository.decision, loaded, tuple(problems))

    def failures(self) -> dict[VersionKey, str]:
        """Returns the versions that could not be loaded, and why."""
        return {
            (name, number): reason
            for name, one in self.decision.models.items()
            for number, reason in one.failed.items()
            if (name, number) not in self.loaded
        }

    def can_answer(self, name: str) -> bool:
        """Returns whether a version of the model answers."""
        return name in self.decision.models and self.decision.models[name].answer is not None

    def document(self) -> dict[str, Any]:
        """Returns it as the admin port sends it; versions are strings, as on the public port."""
        decision = self.decision
        return {
            "default": decision.default,
            "file": {"path": str(self.file.path), "sha256": file_sha256(self.file)}
            if self.file
            else None,
            "problems": list(self.problems),
            "warnings": list(decision.warnings),
            "models": [self._model(name, one) for name, one in decision.models.items()],
        }

    def _model(self, name: str, model: ModelDecision) -> dict[str, Any]:
        loaded = sorted(number for model_name, number in self.loaded if model_name == name)
        return {
            "name": name,
            "answers": None if model.answer is None else str(model.answer),
            "loaded": [str(number) for number in loaded],
            "aliases": {alias: str(number) for alias, number in model.aliases.items()},
            "held": {str(number): reason for number, reason in model.held.items()},
            "failed": {str(number): reason for number, reason in model.failed.items()},
            "trouble": model.trouble,
        }


@dataclass(frozen=True, slots=True)
class AdminActions:
    """The running service, as far as the admin port reaches it.

    Attributes:
        models_dir: the model repository.
        repository_file: its repository.toml, whether it exists or not.
        listing: lists the model repository; called on any thread. Raises RepositoryUnreadable.
        state: returns what is served now.
        reload: polls the repository; returns when a poll that began after the call has ended. It is
            never called again before it has returned. Versions that fail do not make it raise.
        verify: proves that a version can be served, without serving it. Raises ModelError or
            ProviderUnavailable if it cannot. It is called twice at the same time at most.
    """

    models_dir: Path
    repository_file: Path
    listing: Callable[[], Listing]
    state: Callable[[], ServedState]
    reload: Callable[[], Awaitable[None]]
    verify: Callable[[str, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class AdminPort:
    """What the application of the admin port is made of.

    Attributes:
        poll_timeout_s: how long a request waits until its change is served.
        draining: whether clients should close their connections.
    """

    actions: AdminActions
    changes: ChangeLog
    token: AdminToken
    metrics: Metrics
    poll_timeout_s: float
    draining: Callable[[], bool] = lambda: False

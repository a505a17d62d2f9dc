"""Changes repository.toml, one change at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from contract.errors import ChangeRefused, ContractError, ModelError
from contract.repository.changes import Change, RepositoryState, read_state
from contract.repository.editing import write_change
from service.admin.actions import AdminActions
from service.admin.verbs import Verb
from service.errors import ModelNotFound, ProviderUnavailable, ServiceError
from service.models.changelog import ChangeLog, RepositoryChange
from service.system.threads import DaemonThread

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A change that a client asked for."""

    who: str
    name: str  # of the verb
    verb: Verb
    model: str
    body: Any


class RepositoryEditor:
    """Makes the changes that clients ask for, and records them."""

    def __init__(self, actions: AdminActions, changes: ChangeLog, thread: DaemonThread) -> None:
        self._actions = actions
        self._changes = changes
        self._thread = thread
        self._lock = asyncio.Lock()

    async def apply(self, wanted: Wanted) -> dict[str, Any]:
        """Proves the version, writes the file and returns the entry of the log of changes.

        Raises:
            ModelNotFound: no model of this name is in the repository.
            ChangeRefused: the rules do not allow it, or the version cannot be served.
            RepositoryError: the file is not valid, or cannot be written.
        """
        # A change that was begun is finished and recorded, whatever happens to the request.
        return await asyncio.shield(asyncio.create_task(self._apply(wanted), name="admin change"))

    async def _apply(self, wanted: Wanted) -> dict[str, Any]:
        attempt = RepositoryChange(wanted.who, wanted.name, model=wanted.model)
        try:
            # Without the lock: a version that takes long to prove must not hold up a rollback.
            number = await self._in_thread(partial(_version_to_prove, self._actions, wanted))
            if number is not None:
                await self._prove(wanted.model, number)
            async with self._lock:
                change = await self._in_thread(partial(self._edit, wanted, attempt))
                return self._changes.record(change)
        except (ContractError, ServiceError) as error:
            self._changes.record(replace(attempt, outcome="refused", summary=str(error)))
            raise
        except Exception as error:
            self._changes.record(replace(attempt, outcome="failed", summary=repr(error)))
            raise

    async def _prove(self, model: str, number: int) -> None:
        if (model, number) in self._actions.state().loaded:
            return
        try:
            await self._actions.verify(model, number)
        except TimeoutError as error:
            raise ChangeRefused(
                f"{model}/{number} was not proven in time, so nothing was changed"
            ) from error
        except (ModelError, ProviderUnavailable) as error:
            raise ChangeRefused(
                f"{model}/{number} cannot be served, so nothing was changed: {error}"
            ) from error

    def _edit(self, wanted: Wanted, attempt: RepositoryChange) -> RepositoryChange:
        state, change = _prepare(self._actions, wanted)
        written = write_change(state.file, change)
        changed = written.text_before_sha256 != written.text_after_sha256
        if changed:
            self._changes.wrote(written.text_after_sha256)
        return replace(
            attempt,
            outcome="changed" if changed else "unchanged",
            versions=(_answer(state, wanted.model), _answer_now(self._actions, wanted.model)),
            digests=(written.text_before_sha256, written.text_after_sha256),
            summary=change.summary,
        )

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        return await asyncio.wrap_future(self._thread.submit(call))


def _version_to_prove(actions: AdminActions, wanted: Wanted) -> int | None:
    state, _ = _prepare(actions, wanted)
    return wanted.verb.proves(state.file.parsed, wanted.model, wanted.body)


def _prepare(actions: AdminActions, wanted: Wanted) -> tuple[RepositoryState, Change]:
    state = read_state(actions.models_dir, actions.repository_file)
    # Before anything else: the name may be anything, also a path.
    if wanted.model not in {*state.listing.names, *state.file.parsed.models}:
        raise ModelNotFound(
            "no model of this name is in the model repository; GET /v1/admin/models lists them"
        )
    return state, wanted.verb.change(state, wanted.model, wanted.body)


def _answer(state: RepositoryState, model: str) -> int | None:
    decided = state.decision.models.get(model)
    return decided.answer if decided else None


def _answer_now(actions: AdminActions, model: str) -> int | None:
    # The change is made. What somebody else breaks right after it must not make it look refused.
    with suppress(ContractError):
        return _answer(read_state(actions.models_dir, actions.repository_file), model)
    return None

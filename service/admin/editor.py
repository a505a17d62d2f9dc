"""Changes repository.toml, one change at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from contract.errors import ChangeRefused, ContractError, ModelError
from contract.repository.changes import Change, RepositoryState, read_state
from contract.repository.editing import edited_text, preview, write_change
from contract.repository.file import parse_repository_file
from contract.repository.policy import ModelDecision
from contract.versions import sha256
from service.admin.actions import AdminActions
from service.admin.verbs import DEFAULT, Verb
from service.errors import ModelNotFound, ProviderUnavailable, ServiceError
from service.models.changelog import ChangeLog, RepositoryChange, file_sha256
from service.system.threads import DaemonThread

Result = TypeVar("Result")

# At the same time. With one, a version that takes minutes would hold up a rollback; with many, their
# memory would add up.
_PROOFS: Final = 2


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
        self._editing = asyncio.Lock()
        self._proving = asyncio.Semaphore(_PROOFS)

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
            plan = await self._in_thread(partial(_plan, self._actions, wanted))
            for number in plan.unproven:
                await self._prove(wanted.model, number)
            async with self._editing:
                change = await self._in_thread(partial(self._edit, wanted, attempt))
                return self._changes.record(change)
        except (ContractError, ServiceError) as error:
            self._changes.record(replace(attempt, outcome="refused", summary=str(error)))
            raise
        except Exception as error:
            self._changes.record(replace(attempt, outcome="failed", summary=repr(error)))
            raise

    async def _prove(self, model: str, number: int) -> None:
        # Without the lock, because it may take minutes.
        async with self._proving:
            if (model, number) in self._actions.state().loaded:
                return
            try:
                await self._actions.verify(model, number)
            except (ModelError, ProviderUnavailable) as error:
                raise ChangeRefused(
                    f"{model}/{number} cannot be served, so nothing was changed: {error}"
                ) from error

    def _edit(self, wanted: Wanted, attempt: RepositoryChange) -> RepositoryChange:
        plan = _plan(self._actions, wanted)
        change = replace(attempt, summary=plan.change.summary)
        if not plan.change.updates:
            before = file_sha256(plan.state.file)
            return replace(change, outcome="unchanged", digests=(before, before))
        with self._changes.writing(sha256(plan.text)):
            written = write_change(plan.state.file, plan.change)
        digests = written.before_sha256, written.after_sha256
        return replace(change, versions=plan.answers, digests=digests)

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        return await asyncio.wrap_future(self._thread.submit(call))


@dataclass(frozen=True, slots=True)
class _Plan:
    """A change that has not been made yet.

    Attributes:
        text: the content of the file after it.
        answers: the version of the model that answers before and after it.
        unproven: the versions that it names and that are to be loaded. What the rule chooses
            by itself is not among them: there the next version takes the place of one that fails.
    """

    state: RepositoryState
    change: Change
    text: bytes
    answers: tuple[int | None, int | None]
    unproven: list[int]


def _plan(actions: AdminActions, wanted: Wanted) -> _Plan:
    served = actions.state()
    state = read_state(
        actions.models_dir,
        actions.repository_file,
        served.failures(),
        served.decision.default,
        actions.listing(),
    )
    # Before anything else: the name may be anything, also a path.
    if wanted.model not in {*state.listing.names, *state.file.parsed.models}:
        raise ModelNotFound(
            "no model of this name is in the model repository; GET /v1/admin/models lists them"
        )
    change = wanted.verb.change(state, wanted.model, wanted.body)

    decided = [one.models.get(wanted.model) for one in (state.decision, preview(state, change))]
    before, after = (one or ModelDecision() for one in decided)
    text = edited_text(state.file, change)
    policy = parse_repository_file(text, str(state.file.path)).policy(wanted.model)
    known = state.policy(wanted.model).named() & {*before.load}
    unproven = sorted((policy.named() & {*after.load}) - known)
    if wanted.verb is DEFAULT and after.answer is not None and not served.can_answer(wanted.model):
        unproven = [after.answer]
    return _Plan(state, change, text, (before.answer, after.answer), unproven)

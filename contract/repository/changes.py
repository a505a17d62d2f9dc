"""The changes that an owner makes to `repository.toml`, as updates of its keys.

Nothing here writes: `contract.repository.editing` does. Each function raises ChangeRefused if the change
makes no sense, and returns a change without updates if the file says it already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contract.errors import ChangeRefused
from contract.repository.file import (
    ModelPolicy,
    ReadRepositoryFile,
    is_alias,
    read_repository_file,
)
from contract.repository.listing import Listing, list_repository
from contract.repository.policy import Decision, ModelDecision, VersionKey, decide

Updates = Mapping[
    tuple[str, ...], Any
]  # by place in the document: a plain value, None to remove it


@dataclass(frozen=True, slots=True)
class RepositoryState:
    """A model repository as it is now: the file, what is on disk, and what follows from both.

    Attributes:
        failures: versions that a running service could not load, with the reason; their manifests may
            be good.
    """

    models_dir: Path
    file: ReadRepositoryFile
    listing: Listing
    decision: Decision
    failures: Mapping[VersionKey, str] = field(default_factory=dict)

    def policy(self, name: str) -> ModelPolicy:
        """Returns the policy of a model."""
        return self.file.parsed.policy(name)


@dataclass(frozen=True, slots=True)
class Change:
    """A change to the file.

    Attributes:
        updates: new values by place in the document; empty if nothing changes.
        summary: what was done, one sentence without a full stop.
    """

    updates: Updates
    summary: str


def read_state(
    models_dir: Path,
    file: Path,
    failures: Mapping[VersionKey, str] | None = None,
    current_default: str | None = None,
    listing: Listing | None = None,
) -> RepositoryState:
    """Reads the file and lists the repository.

    `failures` and `current_default` are those of a running service, as for `decide`. `listing` is what is
    in the repository, if that is known already.

    Raises:
        RepositoryUnreadable: the model repository cannot be listed.
        RepositoryFileInvalid: the file is not valid.
    """
    read = read_repository_file(file)
    listing = listing or list_repository(models_dir)
    failed = failures or {}
    decision = decide(read.parsed, listing, failed, current_default)
    return RepositoryState(models_dir, read, listing, decision, failed)


def default(state: RepositoryState, name: str) -> Change:
    """Makes a model the one that answers requests without a name."""
    _check_model(state, name)
    if state.policy(name).load == "none":
        raise ChangeRefused(f'{name} has load = "none"; `convserve models load {name}` loads it')
    if state.file.parsed.default == name:
        return Change({}, f"{name} is the default model already")
    trouble = _decided(state, name).trouble
    if trouble is not None:
        raise ChangeRefused(f"{name} cannot be the default model, as it cannot answer: {trouble}")
    return Change({("default",): name}, f"{name} is the default model")


def pin(state: RepositoryState, name: str, number: int) -> Change:
    """Makes a version answer, whatever is published later."""
    _check_version(state, name, number)
    if state.policy(name).answer == number:
        return Change({}, f"{name} is pinned to version {number} already")
    return Change(
        {("models", name, "answer"): number, **_previous(state, name, number)},
        f"{name} is pinned to version {number}",
    )


def unpin(state: RepositoryState, name: str) -> Change:
    """Lets the newest version that satisfies the requirements answer."""
    _check_model(state, name)
    if state.policy(name).answer == "latest":
        return Change({}, f"{name} is not pinned")
    return Change(
        {("models", name, "answer"): None, **_previous(state, name, _latest(state, name))},
        f"the latest version of {name} answers",
    )


def alias(state: RepositoryState, name: str, alias: str, number: int | None) -> Change:
    """Gives a version another name, which stays loaded; None takes the name away."""
    policy = state.policy(name)
    if not is_alias(alias):
        raise ChangeRefused(
            f"{alias!r} cannot be an alias: it must have up to 32 lower-case letters, digits, hyphens "
            'and underscores, start with a letter and not be "latest"'
        )
    place = ("models", name, "aliases", alias)
    if number is None:
        _check_model(state, name)
        if alias not in policy.aliases:
            return Change({}, f"{name} has no alias {alias}")
        if policy.answer == alias:
            raise ChangeRefused(
                f"{name} answers with {alias}; pin a version or unpin the model before"
            )
        return Change({place: None}, f"{name} has no alias {alias} any more")

    _check_version(state, name, number)
    if policy.aliases.get(alias) == number:
        return Change({}, f"{alias} is version {number} of {name} already")
    previous = _previous(state, name, number) if policy.answer == alias else {}
    return Change({place: number, **previous}, f"{alias} is version {number} of {name}")


def promote(state: RepositoryState, name: str, number: int) -> Change:
    """Makes a version answer: moves the alias that answers, or pins the version."""
    _check_model(state, name)
    policy = state.policy(name)
    if isinstance(policy.answer, str) and policy.answer != "latest":
        return alias(state, name, policy.answer, number)
    return pin(state, name, number)


def rollback(state: RepositoryState, name: str) -> Change:
    """Makes the version answer that did before the last change, or the one before the latest.

    Rolling back twice returns to where it began, as the change records the version that it replaces.
    """
    _check_model(state, name)
    answer = _decided(state, name).answer
    target = state.policy(name).previous
    if target is None or target == answer:
        target = _latest(state, name, before=answer)
    if target is None:
        raise ChangeRefused(f"{name} has no version to go back to")
    if target not in state.listing.models[name]:
        raise ChangeRefused(
            f"{name}/{target}, which answered before, is gone; `convserve models promote {name} N` "
            f"chooses one of these: {', '.join(map(str, state.listing.models[name]))}"
        )
    return promote(state, name, target)


def load(state: RepositoryState, name: str, number: int | None = None) -> Change:
    """Loads a version beside the one that answers, or a model that was unloaded."""
    policy = state.policy(name)
    place = ("models", name, "load")
    if number is None:
        _check_model(state, name)
        if policy.load != "none":
            return Change({}, f"{name} is loaded already")
        return Change({place: None}, f"{name} is loaded")

    _check_version(state, name, number)
    if number in _decided(state, name).load:
        return Change({}, f"{name}/{number} is loaded already")
    extra = set(_decided(state, name).load) if policy.load != "none" else set()
    listed = policy.load if isinstance(policy.load, tuple) else sorted(extra)
    return Change({place: sorted({*listed, number})}, f"{name}/{number} is loaded")


def unload(state: RepositoryState, name: str, number: int | None = None) -> Change:
    """Unloads a version that does not answer, or a whole model that is not the default."""
    _check_model(state, name)
    decided, policy = _decided(state, name), state.policy(name)
    place = ("models", name, "load")
    if number is None:
        if policy.load == "none":
            return Change({}, f"{name} is not loaded")
        if state.decision.default == name:
            raise ChangeRefused(f"{name} is the default model; set another default before")
        return Change({place: "none"}, f"{name} is not loaded any more")

    if number not in decided.load:
        return Change({}, f"{name}/{number} is not loaded")
    if number == decided.answer:
        raise ChangeRefused(f"{name}/{number} answers; promote another version before")
    aliases = [alias for alias, of in decided.aliases.items() if of == number]
    if aliases:
        raise ChangeRefused(
            f"{name}/{number} has the alias {aliases[0]}; move or remove the alias before"
        )
    left = [n for n in decided.load if n != number and n != decided.answer]
    left = [n for n in left if n not in decided.aliases.values()]
    return Change({place: left or None}, f"{name}/{number} is not loaded any more")


def _decided(state: RepositoryState, name: str) -> ModelDecision:
    return state.decision.models[name]


def _latest(state: RepositoryState, name: str, before: int | None = None) -> int | None:
    decided = _decided(state, name)
    unusable = {*decided.failed, *decided.held}
    usable = set(state.listing.models[name]) - unusable
    return max((n for n in usable if before is None or n < before), default=None)


def _previous(state: RepositoryState, name: str, number: int | None) -> Updates:
    answer = _decided(state, name).answer
    if answer is None or answer == number or answer == state.policy(name).previous:
        return {}
    return {("models", name, "previous"): answer}


def _check_model(state: RepositoryState, name: str) -> None:
    if name not in state.listing.names:
        names = ", ".join(state.listing.names) or "none"
        raise ChangeRefused(f"there is no model {name!r}; the models are: {names}")
    if name in state.listing.unreadable:
        raise ChangeRefused(state.listing.unreadable[name])


def _check_version(state: RepositoryState, name: str, number: int) -> None:
    _check_model(state, name)
    found = state.listing.models[name]
    if number not in found:
        raise ChangeRefused(
            f"there is no version {number} of {name}; the versions are: {', '.join(map(str, found))}"
        )
    problem = found[number].problem
    if problem is not None:
        raise ChangeRefused(problem)

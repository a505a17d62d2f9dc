"""What a running service will do after a change, in sentences for whoever made it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from contract.errors import RepositoryError
from contract.repository.changes import RepositoryState, read_state
from contract.repository.file import repository_file_path
from contract.repository.policy import Decision, ModelDecision

POLL_S: Final = 5
"""How often a service looks for changes unless `models_poll_s` says otherwise, in seconds."""
_WHEN: Final = f"within {POLL_S} s (models_poll_s)"


def describe_effect(
    models_dir: Path, name: str, number: int, repository_file: Path | None = None
) -> str:
    """Returns what a running service will do with a version that was just published."""
    try:
        state = read_state(models_dir, repository_file_path(models_dir, repository_file))
    except RepositoryError as error:
        return f"A service keeps what it serves until this is repaired: {error}"
    sentences = [_fate(state, name, number)]
    if state.decision.default is None:
        sentences.append(
            "No default model is set, so requests that name no model get 404; `convserve models "
            "default NAME` sets one."
        )
    return " ".join(sentences)


def describe_change(before: Decision, after: Decision, name: str) -> str:
    """Returns what a running service will do after a change to a model's policy."""
    sentences = [_answer_change(before.models[name], after.models[name], name)]
    if before.default != after.default and after.default is not None:
        sentences.append(f"Requests that name no model get the answers of {after.default}.")
    return " ".join(sentences)


def _fate(state: RepositoryState, name: str, number: int) -> str:
    decided = state.decision.models.get(name)
    if decided is None:
        return f"A service does not serve {name}."
    if decided.answer == number:
        return f"A service that reads this folder serves {name}/{number} {_WHEN}."
    still = (
        f"{name}/{decided.answer} answers" if decided.answer else f"no version of {name} answers"
    )
    promote = f"`convserve models promote {name} {number}` serves it all the same."
    if number in decided.failed:
        return f"It cannot be served: {decided.failed[number]}; {still}."
    if number in decided.held:
        return f"{decided.held[number]}; {still}. {promote}"
    policy = state.policy(name)
    if policy.load == "none":
        return (
            f'repository.toml says load = "none" for {name}, so a service does not load it; '
            f"`convserve models load {name}` loads it."
        )
    if policy.answer != "latest":
        pinned = policy.pinned()
        by = f" by the alias {policy.answer}" if isinstance(policy.answer, str) else ""
        return (
            f"{name} is pinned to version {pinned}{by}; {still}. "
            f"`convserve models promote {name} {number}` serves the new one."
        )
    return f"{name}/{decided.answer} is newer and answers. {promote}"


def _answer_change(before: ModelDecision, after: ModelDecision, name: str) -> str:
    if after.answer is None:
        return f"A service that reads this folder serves no version of {name}: {after.trouble}."
    if after.answer != before.answer:
        was = f"; so far {name}/{before.answer} answered" if before.answer else ""
        return f"A service that reads this folder serves {name}/{after.answer} {_WHEN}{was}."
    stays = f"The version that answers does not change: {name}/{after.answer}."
    loaded = sorted({*after.load} - {*before.load})
    unloaded = sorted({*before.load} - {*after.load})
    changes = [
        f"A service {verb} {', '.join(f'{name}/{one}' for one in numbers)} {_WHEN}."
        for verb, numbers in (("loads", loaded), ("unloads", unloaded))
        if numbers
    ]
    return " ".join([stays, *changes])

"""`convserve models list` and `show`: what is in the model repository, and what is served from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import click

from contract.errors import ChangeRefused
from contract.manifest import Manifest
from contract.repository.changes import RepositoryState
from contract.repository.listing import Listed
from contract.repository.policy import ModelDecision
from convserve.commands.models.changing import Place, read_place, repository_command

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_HEADINGS = ("model", "version", "state", "top-1", "classes", "created", "aliases")
_NOT_SHOWN = ("versions", "problems")  # below, as a table and as lines
_MAX_SHOWN = 10  # items of a list


@click.command("list")
@json_option
@repository_command
def list_models(place: Place, as_json: bool) -> None:
    """List the versions in the model repository and which of them a service loads and answers with.

    No file but repository.toml and the manifests is read; `convserve verify` verifies all of it.
    """
    state = read_place(place)
    document = _repository_json(state)
    if as_json:
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
        return
    rows = [_row(model, one) for model in document["models"] for one in model["versions"]]
    _print_table([_HEADINGS, *rows])
    if document["default"] is not None:
        click.echo("\n* the default model")
    _print_notes(document)


@click.command()
@click.argument("model", metavar="NAME[/VERSION]")
@json_option
@repository_command
def show(place: Place, model: str, as_json: bool) -> None:
    """Describe a model, or one version of it."""
    state = read_place(place)
    name, slash, version = model.partition("/")
    if name not in state.listing.names:
        names = ", ".join(state.listing.names)
        raise ChangeRefused(f"there is no model {name!r}; the models are: {names}")
    document = _version_json(state, name, _number(state, name, version)) if slash else None
    document = document or _model_json(state, name)
    if as_json:
        click.echo(json.dumps(document, indent=1, ensure_ascii=False))
        return
    shown = {key: _text(value) for key, value in document.items() if key not in _NOT_SHOWN}
    _print_table([(key.replace("_", " "), text) for key, text in shown.items() if text])
    if "versions" in document:
        click.echo()
        _print_table([_HEADINGS, *(_row(document, one) for one in document["versions"])])
        _print_reasons(document)


def _number(state: RepositoryState, name: str, version: str) -> int:
    found = state.listing.models.get(name, {})
    aliases = state.policy(name).aliases
    number = aliases.get(version, int(version) if version.isdecimal() else None)
    if number is None or number not in found:
        known = ", ".join([*map(str, found), *aliases]) or "none"
        raise ChangeRefused(f"there is no version {version!r} of {name}; there are: {known}")
    return number


def _repository_json(state: RepositoryState) -> dict[str, Any]:
    decision = state.decision
    return {
        "models_dir": str(state.models_dir),
        "repository_file": str(state.file.path) if state.file.text is not None else None,
        "default": decision.default,
        "models": [_model_json(state, name) for name in decision.models],
        "warnings": list(decision.warnings),
    }


def _model_json(state: RepositoryState, name: str) -> dict[str, Any]:
    decided, policy = state.decision.models[name], state.policy(name)
    return {
        "name": name,
        "is_default": name == state.decision.default,
        "answers": decided.answer,
        "problems": _problems(decided, name),
        "policy": policy.model_dump(mode="json", exclude_none=True),
        "versions": [
            _summary(number, one, decided, policy.aliases)
            for number, one in state.listing.models.get(name, {}).items()
        ],
    }


def _problems(decided: ModelDecision, name: str) -> list[str]:
    problems = list(decided.failed.values())
    trouble = decided.trouble
    if trouble is not None and trouble not in (*problems, *decided.held.values()):
        problems.append(trouble if name in trouble else f"{name}: {trouble}")
    return problems


def _summary(number: int, one: Listed, decided: ModelDecision, aliases: Any) -> dict[str, Any]:
    manifest = one.manifest
    return {
        "version": number,
        "state": _state(number, decided),
        "reason": decided.failed.get(number) or decided.held.get(number),
        "aliases": [alias for alias, of in aliases.items() if of == number],
        "top1_percent": manifest.metrics.top1_percent if manifest and manifest.metrics else None,
        "n_classes": manifest.n_classes if manifest else None,
        "created_at": manifest.created_at.isoformat() if manifest else None,
        "manifest_sha256": one.manifest_sha256,
    }


def _state(number: int, decided: ModelDecision) -> str:
    if number == decided.answer:
        return "answers"
    if number in decided.failed:
        return "failed"
    if number in decided.load:
        return "loaded"
    return "held back" if number in decided.held else "not loaded"


def _version_json(state: RepositoryState, name: str, number: int) -> dict[str, Any]:
    one = state.listing.models[name][number]
    summary = _summary(number, one, state.decision.models[name], state.policy(name).aliases)
    details = _details(one.manifest) if one.manifest else {}
    folder = state.models_dir / name / str(number)
    return {"name": name, **summary, **details, "folder": str(folder)}


def _details(manifest: Manifest) -> dict[str, Any]:
    return {
        "architecture": manifest.architecture,
        "metrics": manifest.metrics.model_dump(mode="json", exclude_none=True)
        if manifest.metrics
        else None,
        "preprocessing": manifest.preprocessing.model_dump(mode="json", exclude_none=True),
        "provenance": manifest.provenance.model_dump(mode="json", exclude_none=True),
        "labels": [label.name for label in manifest.labels],
    }


def _row(model: dict[str, Any], one: dict[str, Any]) -> tuple[str, ...]:
    top1 = one["top1_percent"]
    return (
        f"{model['name']}{' *' if model['is_default'] else ''}",
        str(one["version"]),
        one["state"],
        "-" if top1 is None else f"{top1:.1f}%",
        str(one["n_classes"] or "-"),
        (one["created_at"] or "-")[:10],
        ", ".join(one["aliases"]),
    )


def _print_table(rows: Iterable[tuple[str, ...]]) -> None:
    lines = list(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _print_notes(document: dict[str, Any]) -> None:
    for model in document["models"]:
        _print_reasons(model)
    for line in document["warnings"]:
        click.echo(f"note: {line}")


def _print_reasons(model: dict[str, Any]) -> None:
    held = [one["reason"] for one in model["versions"] if one["state"] == "held back"]
    for reason in [*model["problems"], *held]:
        click.echo(reason)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        texts = {key: _text(one) for key, one in value.items()}
        return ", ".join(f"{key}: {text}" for key, text in texts.items() if text)
    if isinstance(value, list):
        shown = ", ".join(map(_text, value[:_MAX_SHOWN]))
        return f"{shown}, ... ({len(value)})" if len(value) > _MAX_SHOWN else shown
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)

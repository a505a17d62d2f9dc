"""`convserve models load` and `unload`: which versions are loaded besides the one that answers."""

from __future__ import annotations

import click

from contract.repository import changes
from convserve.commands.models.changing import (
    Place,
    apply_change,
    name_argument,
    parse_number,
    repository_command,
)

_optional_version = click.argument(
    "number", metavar="[VERSION]", callback=parse_number, required=False
)


@click.command()
@name_argument
@_optional_version
@repository_command
def load(place: Place, name: str, number: int | None) -> None:
    """Load VERSION of the model NAME beside the one that answers, or a model that was unloaded."""
    apply_change(place, name, lambda state: changes.load(state, name, number))


@click.command()
@name_argument
@_optional_version
@repository_command
def unload(place: Place, name: str, number: int | None) -> None:
    """Unload VERSION of the model NAME, or the whole model. Nothing is deleted."""
    apply_change(place, name, lambda state: changes.unload(state, name, number))

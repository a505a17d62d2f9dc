"""`convserve models pin`, `unpin`, `default`, `alias`, `promote` and `rollback`: which version answers."""

from __future__ import annotations

import click

from contract.repository import changes
from contract.repository.changes import Change, RepositoryState
from convserve.commands.models.changing import (
    Place,
    Verification,
    apply_change,
    name_argument,
    parse_number,
    read_place,
    repository_command,
    verify_some_answer,
    verifying,
    version_argument,
)


@click.command()
@name_argument
@version_argument
@verifying
@repository_command
def pin(place: Place, name: str, number: int, verification: Verification) -> None:
    """Make VERSION of the model NAME answer, whatever is published later.

    The version is verified first, as the service does before it serves one.
    """
    apply_change(place, name, lambda state: changes.pin(state, name, number), verification)


@click.command()
@name_argument
@repository_command
def unpin(place: Place, name: str) -> None:
    """Let the newest version of the model NAME answer that satisfies its requirements."""
    apply_change(place, name, lambda state: changes.unpin(state, name))


@click.command()
@name_argument
@verifying
@repository_command
def default(place: Place, name: str, verification: Verification) -> None:
    """Make the model NAME answer the requests that name none.

    The version that answers is verified first, and if it is broken, the one that a service takes instead.
    """

    def change_of(state: RepositoryState) -> Change:
        change = changes.default(state, name)
        if change.updates and verification.verify:
            verify_some_answer(place, state, name, verification)
        return change

    apply_change(place, name, change_of)


def _parse_alias(
    context: click.Context, parameter: click.Parameter, text: str
) -> tuple[str, int | None]:
    given, equals, number = text.partition("=")
    if not equals:
        raise click.BadParameter(f"{text!r} is not of the form stable=3, or stable= to remove it")
    return given, parse_number(context, parameter, number or None)


@click.command()
@name_argument
@click.argument("alias_version", metavar="ALIAS=VERSION", callback=_parse_alias)
@verifying
@repository_command
def alias(
    place: Place, name: str, alias_version: tuple[str, int | None], verification: Verification
) -> None:
    """Give a version of the model NAME another name, as in stable=3; stable= takes it away.

    A version with an alias stays loaded, and clients can ask for it by that name. If the alias answers,
    the version is verified first.
    """
    given, number = alias_version
    answers = read_place(place).policy(name).answer == given
    apply_change(
        place,
        name,
        lambda state: changes.alias(state, name, given, number),
        verification if answers else None,
    )


@click.command()
@name_argument
@version_argument
@verifying
@repository_command
def promote(place: Place, name: str, number: int, verification: Verification) -> None:
    """Make VERSION of the model NAME answer: move the alias that answers, or pin the version.

    The version is verified first, as the service does before it serves one.
    """
    apply_change(place, name, lambda state: changes.promote(state, name, number), verification)


@click.command()
@name_argument
@verifying
@repository_command
def rollback(place: Place, name: str, verification: Verification) -> None:
    """Make the version of the model NAME answer that did before the last change.

    Without such a change, it is the version before the latest. It is verified first.
    """

    def change_of(state: RepositoryState) -> Change:
        return changes.rollback(state, name)

    apply_change(place, name, change_of, verification)

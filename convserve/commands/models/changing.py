"""What the commands that change the model repository share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from contract.errors import ChangeRefused, ContractError
from contract.repository.changes import Change, RepositoryState, read_state
from contract.repository.editing import as_lines, preview, write_change
from contract.repository.effects import describe_change
from contract.repository.file import repository_file_path
from contract.repository.policy import Decision, VersionKey, decide
from contract.versions import is_version_number
from convserve.commands.options import UserPath, load_limits, provider_option
from convserve.versions.verification import verify_version
from service.errors import ProviderUnavailable
from service.models.repository import no_versions


def parse_number(
    _context: click.Context, _parameter: click.Parameter, text: str | None
) -> int | None:
    """Returns the version number that the user gave; the callback of an argument."""
    if text is not None and not is_version_number(text):
        raise click.BadParameter(f"{text!r} is not a version number")
    return None if text is None else int(text)


name_argument = click.argument("name")
version_argument = click.argument("number", metavar="VERSION", callback=parse_number)


class Place(NamedTuple):
    """A model repository, and the file that says what is served from it."""

    models_dir: Path
    file: Path


class Verification(NamedTuple):
    """How a version is verified before it may answer."""

    provider: str
    verify: bool


def repository_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --models-dir and --repository-file, which the command gets as its `place`.

    They have the values of `convserve models` where they are not given. Errors become messages.
    """

    @click.option("--models-dir", type=UserPath(), help="Model repository [default: ./models].")
    @click.option(
        "--repository-file",
        type=UserPath(dir_okay=False),
        help="File that says what is served [default: repository.toml in the model repository].",
    )
    @click.pass_context
    def with_place(
        context: click.Context,
        /,
        models_dir: Path | None,
        repository_file: Path | None,
        **arguments: Any,
    ) -> Any:
        default_dir, default_file = context.obj
        folder = models_dir or default_dir
        file = repository_file_path(folder, repository_file or default_file)
        try:
            return command(Place(folder, file), **arguments)
        except (ContractError, ProviderUnavailable) as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from error

    return functools.update_wrapper(with_place, command)


def verifying(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --no-verify and --provider, which the command gets as its `verification`."""

    @click.option("--no-verify", is_flag=True, help="Do not verify the version first.")
    @provider_option
    @functools.wraps(command)
    def with_verification(*positional: Any, provider: str, no_verify: bool, **named: Any) -> Any:
        return command(*positional, verification=Verification(provider, not no_verify), **named)

    return with_verification


def read_place(place: Place) -> RepositoryState:
    """Reads what is on disk and what the file says of it.

    Raises:
        RepositoryError: one of them cannot be read.
        click.ClickException: there is no version.
    """
    if not place.models_dir.exists():
        raise click.ClickException(no_versions(place.models_dir))
    state = read_state(place.models_dir, place.file)
    if not state.listing.names:
        raise click.ClickException(no_versions(place.models_dir))
    return state


def apply_change(
    place: Place,
    name: str,
    change_of: Callable[[RepositoryState], Change],
    verification: Verification | None = None,
) -> None:
    """Makes a change, and prints it and what follows from it.

    With `verification`, the version that answers after the change is verified first.
    """
    state = read_place(place)
    change = change_of(state)
    if not change.updates:
        click.echo(f"{change.summary}; nothing to change.")
        return
    after = preview(state, change)
    if verification is not None and verification.verify:
        verify_answer(place, after, name, verification)
    write_change(state.file, change)

    click.echo(f"{change.summary}.")
    click.echo(f"Written to {state.file.path}:")
    for line in as_lines(change).splitlines():
        click.echo(f"    {line}")
    click.echo(describe_change(state.decision, after, name))


def verify_answer(place: Place, decision: Decision, name: str, verification: Verification) -> None:
    """Verifies the version that answers, as the service does before it serves one.

    Raises:
        ModelError: it is broken, or exceeds the limits.
        ProviderUnavailable: the provider does not work here.
    """
    number = decision.models[name].answer
    if number is not None:
        _verify(place, name, number, verification)


def verify_loaded(place: Place, decision: Decision, name: str, verification: Verification) -> None:
    """Verifies every version that is loaded; raises as `verify_answer`."""
    for number in decision.models[name].load:
        _verify(place, name, number, verification)


def verify_some_answer(
    place: Place, state: RepositoryState, name: str, verification: Verification
) -> None:
    """Verifies versions that may answer, as the service takes them, until one is good.

    Raises:
        ChangeRefused: none is.
    """
    failures: dict[VersionKey, str] = {}
    while True:
        decided = decide(state.file.parsed, state.listing, failures).models[name]
        if decided.answer is None:
            raise ChangeRefused(f"{name} cannot answer: {decided.trouble}")
        try:
            _verify(place, name, decided.answer, verification)
        except (ContractError, ProviderUnavailable) as error:
            failures[name, decided.answer] = str(error)
        else:
            return


def _verify(place: Place, name: str, number: int, verification: Verification) -> None:
    verify_version(place.models_dir, name, number, verification.provider, load_limits())

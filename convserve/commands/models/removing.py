"""`convserve models remove` and `gc`: delete versions that are not served."""

from __future__ import annotations

import shutil
import sys

import click

from contract.errors import ContractError
from contract.repository.removal import (
    check_removable,
    find_leftovers,
    removable_versions,
    remove_version,
)
from convserve.commands.models.changing import (
    Place,
    Verification,
    name_argument,
    read_place,
    repository_command,
    verify_loaded,
    verifying,
    version_argument,
)
from service.errors import ProviderUnavailable


@click.command()
@name_argument
@version_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@verifying
@repository_command
def remove(place: Place, name: str, number: int, yes: bool, verification: Verification) -> None:
    """Delete VERSION of the model NAME. Its number is never given again.

    A version that is loaded or named in repository.toml is refused. The versions that are
    loaded are verified first, because a service may load an older one in place of one that is broken.
    """
    state = read_place(place)
    check_removable(state, name, number)
    if verification.verify:
        verify_loaded(place, state.decision, name, verification)
    folder = place.models_dir / name / str(number)
    if not yes:
        click.confirm(f"Delete {folder}?", abort=True)
    remove_version(place.models_dir, place.file, name, number)
    click.echo(f"{name}/{number} is removed; its number is not given again.")


@click.command()
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How many of the newest versions of each model stay.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@verifying
@repository_command
def gc(place: Place, keep: int, dry_run: bool, verification: Verification) -> None:
    """Delete old versions that are neither loaded nor named in repository.toml.

    Also deleted is what publishing left behind when it was killed, after a day. Where a version that
    is loaded is broken, nothing of the model is deleted, because a service may load an older one instead.
    """
    state = read_place(place)
    verb = "would delete" if dry_run else "deleted"
    failed, n_deleted = False, 0
    for name in state.listing.models:
        numbers = removable_versions(state, name, keep)
        try:
            if numbers and verification.verify:
                verify_loaded(place, state.decision, name, verification)
            for number in numbers:
                if not dry_run:
                    remove_version(place.models_dir, place.file, name, number)
                click.echo(f"{verb}  {name}/{number}")
                n_deleted += 1
        except (ContractError, ProviderUnavailable, OSError) as error:
            click.echo(f"FAILED  nothing more of {name} is deleted: {error}", err=True)
            failed = True
    for path in find_leftovers(place.models_dir):
        if not dry_run:
            shutil.rmtree(path, ignore_errors=True)
        click.echo(f"{verb}  {path}")
        n_deleted += 1
    if not n_deleted and not failed:
        click.echo("There is nothing to delete.")
    sys.exit(1 if failed else 0)

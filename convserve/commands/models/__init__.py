"""`convserve models`: one module per subcommand, imported only when that one runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from contract.versions import find_versions
from convserve.commands.lazy import LazyGroup
from convserve.commands.options import models_option
from service.models.repository import no_versions

SUBCOMMANDS: Final = {
    "diff": "Compare two versions: labels, metrics, size, speed and answers.",
    "relabel": "Rename classes into a new version, without training.",
    "migrate": "Publish versions that have an old manifest again.",
}


@click.group(cls=LazyGroup, package=__name__, table=SUBCOMMANDS, invoke_without_command=True)
@models_option
@click.pass_context
def models(context: click.Context, models_dir: Path) -> None:
    """List, compare and change the versions in the model repository.

    Without a subcommand, lists them.
    """
    if context.invoked_subcommand is not None:
        return

    found = find_versions(models_dir)
    for name, numbers in found.items():
        click.echo(f"{name}  {', '.join(str(number) for number in numbers)}")
    if not found:
        click.echo(no_versions(models_dir), err=True)
        sys.exit(1)

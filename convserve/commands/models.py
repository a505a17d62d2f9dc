"""`convserve models`: lists the model repository."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from contract.versions import find_versions
from convserve.commands.options import models_option
from service.models.repository import no_versions


@click.command()
@models_option
def models(models_dir: Path) -> None:
    """List the versions in the model repository."""
    found = find_versions(models_dir)
    for name, numbers in found.items():
        click.echo(f"{name}  {', '.join(str(number) for number in numbers)}")
    if not found:
        click.echo(no_versions(models_dir), err=True)
        sys.exit(1)

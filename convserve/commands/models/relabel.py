"""`convserve models relabel`: renames classes without training."""

from __future__ import annotations

from pathlib import Path

import click

from contract.repository.effects import describe_effect
from convserve.commands.models.changing import Place, repository_command
from convserve.commands.options import (
    UserPath,
    choose_version,
    errors_as_messages,
    provider_option,
    reason,
)
from convserve.versions.relabel import Pair, RelabellingInvalid, read_names
from convserve.versions.relabel import relabel as publish_relabelled
from service.models.repository import EngineConfig


@click.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1))
@click.option(
    "--map",
    "file",
    required=True,
    type=UserPath(dir_okay=False),
    help="The new names: .json, .csv or .toml.",
)
@provider_option
@repository_command
def relabel(place: Place, name: str, version: int, file: Path, provider: str) -> None:
    """Rename classes of NAME's version VERSION. The result is a new version of NAME.

    FILE has pairs of an old and a new name: a JSON object, a TOML table, or CSV rows "old,new".
    Classes that it does not name keep their names. A class can also be named by its synset.

    Nothing is trained: the graph stays the same. The new version gets the next number and is verified
    as the service does before it serves it. If anything is wrong, nothing is published.
    """
    models_dir = place.models_dir
    choose_version(models_dir, f"{name}/{version}")
    with errors_as_messages():
        pairs = _read_names(file)
        try:
            made = publish_relabelled(models_dir, name, version, pairs, EngineConfig(provider))
        except RelabellingInvalid as error:
            message = f"{file} does not fit {name}/{version}: {error}. Nothing was published."
            raise click.ClickException(message) from error
        except OSError as error:
            where = error.filename or models_dir
            raise click.ClickException(f"{where}: {reason(error)}") from error

    renamed = made.comparison.labels_renamed if made.comparison else {}
    for old, new in renamed.items():
        click.echo(f"renamed   {old!r} to {new!r}")
    kept = made.n_classes - len(renamed)
    click.echo(
        f"published {name}/{made.version}: {kept:,} of {made.n_classes:,} names are unchanged"
    )
    click.echo(describe_effect(models_dir, name, made.version, place.file))


def _read_names(file: Path) -> list[Pair]:
    try:
        return read_names(file)
    except OSError as error:
        raise click.ClickException(f"{file}: {reason(error)}") from error

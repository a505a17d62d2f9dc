"""`convserve models migrate`: writes manifests of older schema versions in the current one."""

from __future__ import annotations

import sys

import click

from contract.errors import ContractError
from contract.repository.effects import describe_effect
from contract.upgrades import SCHEMA_VERSION
from contract.versions import find_versions
from convserve.commands.models.changing import Place, repository_command
from convserve.commands.options import provider_option
from convserve.migration import migrate as migrate_version
from service.errors import ProviderUnavailable
from service.models.repository import EngineConfig, no_versions


@click.command()
@click.argument("names", nargs=-1)
@provider_option
@repository_command
def migrate(place: Place, names: tuple[str, ...], provider: str) -> None:
    """Publish each version that has an old manifest again, with one of the current schema.

    NAMES are model names; without any, all models are migrated. The newest version of each gets the
    next number and is verified as the service does before it serves it. Its graph and its other files
    stay the same, and so does the old version. The exit status is 1 if any model fails.
    """
    models_dir = place.models_dir
    found = find_versions(models_dir)
    if not found:
        raise click.ClickException(no_versions(models_dir))
    unknown = [name for name in names if name not in found]
    if unknown:
        raise click.ClickException(f"no model {unknown[0]!r}; there are: {', '.join(found)}")

    failed = False
    for name in dict.fromkeys(names) or found:
        number = found[name][-1]
        try:
            migrated = migrate_version(models_dir, name, number, EngineConfig(provider))
        except (ContractError, ProviderUnavailable, OSError) as error:
            click.echo(f"FAILED    {error}")
            failed = True
        else:
            if migrated is None:
                click.echo(f"current   {name}/{number}: schema version {SCHEMA_VERSION}")
            else:
                click.echo(f"migrated  {name}/{number} to {name}/{migrated}")
                click.echo(f"          {describe_effect(models_dir, name, migrated, place.file)}")
    sys.exit(1 if failed else 0)

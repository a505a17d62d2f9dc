"""`convserve models`: lists the versions in the model repository, and migrates their manifests."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from contract.errors import ContractError
from contract.upgrades import SCHEMA_VERSION
from contract.versions import find_versions
from convserve.commands.options import UserPath, models_option, provider_option
from convserve.migration import migrate as migrate_version
from service.errors import ProviderUnavailable
from service.models.repository import EngineConfig, no_versions


@click.group(invoke_without_command=True)
@models_option
@click.pass_context
def models(context: click.Context, models_dir: Path) -> None:
    """List the versions in the model repository, or migrate them."""
    context.meta[__name__] = models_dir
    if context.invoked_subcommand is not None:
        return

    found = find_versions(models_dir)
    for name, numbers in found.items():
        click.echo(f"{name}  {', '.join(str(number) for number in numbers)}")
    if not found:
        click.echo(no_versions(models_dir), err=True)
        sys.exit(1)


@models.command()
@click.argument("names", nargs=-1)
@click.option("--models-dir", type=UserPath(), help="Model repository, as for `convserve models`.")
@provider_option
@click.pass_context
def migrate(
    context: click.Context, names: tuple[str, ...], models_dir: Path | None, provider: str
) -> None:
    """Publish each version that has an old manifest again, with one of the current schema.

    NAMES are model names; without any, all models are migrated. The newest version of each gets the
    next number and is verified as the service does before it serves it. Its graph and its other files
    stay the same, and so does the old version. The exit status is 1 if any model fails.
    """
    folder = models_dir or context.meta[__name__]
    found = find_versions(folder)
    if not found:
        raise click.ClickException(no_versions(folder))
    unknown = [name for name in names if name not in found]
    if unknown:
        raise click.ClickException(f"no model {unknown[0]!r}; there are: {', '.join(found)}")

    failed = False
    for name in dict.fromkeys(names) or found:
        number = found[name][-1]
        try:
            migrated = migrate_version(folder, name, number, EngineConfig(provider))
        except (ContractError, ProviderUnavailable, OSError) as error:
            click.echo(f"FAILED    {error}")
            failed = True
        else:
            if migrated is None:
                click.echo(f"current   {name}/{number}: schema version {SCHEMA_VERSION}")
            else:
                click.echo(f"migrated  {name}/{number} to {name}/{migrated}")
    sys.exit(1 if failed else 0)

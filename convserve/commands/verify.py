"""`convserve verify`: verifies versions as the service does before it serves them."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from contract.errors import ContractError
from contract.versions import find_versions
from convserve.commands.options import models_option, provider_option
from service.errors import ProviderUnavailable
from service.models.repository import EngineConfig, load_version, no_versions


@click.command()
@click.argument("names", nargs=-1)
@models_option
@provider_option
def verify(names: tuple[str, ...], models_dir: Path, provider: str) -> None:
    """Verify versions as the service does before it serves them.

    NAMES are model names or NAME/VERSION; without any, all versions are verified. This checks the
    digests of all files, the graph's inputs and outputs, and the golden examples. The exit status is
    1 if any version fails.
    """
    failed = False
    for name, number in _select(models_dir, names):
        try:
            version = load_version(models_dir, name, number, EngineConfig(provider))
        except (ContractError, ProviderUnavailable) as error:
            click.echo(f"FAILED  {error}")
            failed = True
        else:
            click.echo(
                f"ok      {name}/{number}: {len(version.manifest.files)} files, "
                f"{len(version.manifest.golden)} golden examples within "
                f"{version.golden_difference:.1e}, provider {version.provider}"
            )
    sys.exit(1 if failed else 0)


def _select(models_dir: Path, names: tuple[str, ...]) -> list[tuple[str, int]]:
    found = find_versions(models_dir)
    if not found:
        raise click.ClickException(no_versions(models_dir))

    every = [(name, number) for name, numbers in found.items() for number in numbers]
    accepted = {key: {key[0], f"{key[0]}/{key[1]}"} for key in every}
    for name in names:
        if not any(name in spellings for spellings in accepted.values()):
            raise click.ClickException(
                f"no model or version {name!r}; `convserve models` lists them"
            )
    return [key for key in every if not names or accepted[key] & set(names)]

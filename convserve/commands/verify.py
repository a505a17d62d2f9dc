"""`convserve verify`: checks versions as the service does before it serves them."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from contract.errors import ContractError
from contract.versions import find_versions
from convserve.commands.options import find_models_dir, models_option, provider_option
from service.errors import ProviderUnavailable
from service.models.repository import RunPlan, load_version


@click.command()
@click.argument("names", nargs=-1)
@models_option
@provider_option
def verify(names: tuple[str, ...], models_dir: Path | None, provider: str) -> None:
    """Check versions as the service does before it serves them.

    NAMES are model names or name/version; all versions if none is given. Digests, the graph's
    signature and the golden examples are checked. The exit status is 1 if any version fails.
    """
    directory = find_models_dir(models_dir)
    plan = RunPlan(provider)
    wanted = _select(find_versions(directory), names)
    failed = False
    for name, number in wanted:
        try:
            version = load_version(directory, name, number, plan)
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


def _select(found: dict[str, list[int]], names: tuple[str, ...]) -> list[tuple[str, int]]:
    every = [(name, number) for name, numbers in found.items() for number in numbers]
    if not names:
        if not every:
            raise click.ClickException("the model repository holds no version")
        return every
    chosen = [key for key in every if key[0] in names or f"{key[0]}/{key[1]}" in names]
    known = {name for key in every for name in (key[0], f"{key[0]}/{key[1]}")}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.ClickException(f"no such model or version: {unknown[0]}")
    return chosen

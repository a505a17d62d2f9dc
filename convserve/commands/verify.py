"""`convserve verify`: judges a model repository as a start of the service does."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from contract.errors import ContractError, RepositoryError
from contract.repository.listing import list_repository
from contract.repository.policy import VersionKey
from convserve.commands.options import (
    load_limits,
    models_option,
    provider_option,
    repository_file_option,
)
from convserve.commands.serve import EXIT_NOT_SERVABLE
from convserve.versions.verification import verify_version
from service.errors import ProviderUnavailable
from service.models.repository import EngineConfig, LoadedVersion, Repository
from service.models.selection import RepositoryConfig, load_repository, look

EXIT_WITH_PROBLEMS = 1


@click.command()
@click.argument("names", nargs=-1)
@models_option
@repository_file_option
@click.option("--skip-broken", is_flag=True, help="Judge as `convserve serve --skip-broken` does.")
@provider_option
def verify(
    names: tuple[str, ...],
    models_dir: Path,
    repository_file: Path | None,
    skip_broken: bool,
    provider: str,
) -> None:
    """Judge the model repository as a start of the service does.

    Every version is verified in a child process, within the limits of `convserve serve`: the digests of
    all files, the graph's inputs and outputs, and the golden examples. Then repository.toml is applied. The exit status is 0 if all is well, 1 if the service
    would start although something cannot be served, and 3 if it would not start.

    NAMES are model names or NAME/VERSION. With them, only those versions are verified, and
    repository.toml does not count.
    """
    config = RepositoryConfig(models_dir, EngineConfig(provider), repository_file, skip_broken)
    verifier = _Verifier(config)
    try:
        keys = _select(config, names)
    except RepositoryError as error:
        click.echo(f"A start would fail: {error}", err=True)
        sys.exit(EXIT_NOT_SERVABLE)
    for key in keys:
        verifier.verify(key)
    if names:
        sys.exit(EXIT_WITH_PROBLEMS if verifier.failures else 0)

    try:
        repository = load_repository(config, verifier.load)
    except RepositoryError as error:
        click.echo(f"A start would fail: {error}", err=True)
        sys.exit(EXIT_NOT_SERVABLE)
    _describe(repository)
    sys.exit(EXIT_WITH_PROBLEMS if repository.problems or verifier.failures else 0)


class _Verifier:
    """Verifies each version once, and keeps what a start needs to know of it."""

    def __init__(self, config: RepositoryConfig) -> None:
        self.failures: dict[VersionKey, Exception] = {}
        self._config = config
        self._verified: dict[VersionKey, LoadedVersion] = {}

    def verify(self, key: VersionKey) -> None:
        config = self._config
        try:
            version = verify_version(
                config.models_dir, *key, config.engine_config.provider, load_limits()
            )
        except (ContractError, ProviderUnavailable) as error:
            click.echo(f"FAILED  {error}")
            self.failures[key] = error
            return
        manifest = version.manifest
        unclear = " without a clear first class" if manifest.golden[0].undecided else ""
        click.echo(
            f"ok      {key[0]}/{key[1]}: {len(manifest.files)} files, "
            f"{len(manifest.golden)} golden examples{unclear} within "
            f"{version.golden_difference:.1e}, provider {version.provider}"
        )
        self._verified[key] = version

    def load(self, _models_dir: Path, name: str, number: int, _run: EngineConfig) -> LoadedVersion:
        if failure := self.failures.get((name, number)):
            raise failure
        return self._verified[name, number]


def _describe(repository: Repository) -> None:
    for line in repository.held:
        click.echo(f"held    {line}")
    for line in repository.decision.warnings:
        click.echo(f"note    {line}")
    served = [
        f"{name}/{one.answer}{' (default)' if name == repository.default_name else ''}"
        for name, one in repository.decision.models.items()
        if one.answer is not None
    ]
    click.echo(f"A start would serve {', '.join(served)}.")
    for line in repository.problems:
        click.echo(f"Problem: {line}")


def _select(config: RepositoryConfig, names: tuple[str, ...]) -> list[VersionKey]:
    look(config)  # raises if there is nothing to judge
    listing = list_repository(config.models_dir)
    every = [(name, number) for name, found in listing.models.items() for number in found]
    accepted = {key: {key[0], f"{key[0]}/{key[1]}"} for key in every}
    for name in names:
        if not any(name in spellings for spellings in accepted.values()):
            raise click.ClickException(
                f"no model or version {name!r}; `convserve models` lists them"
            )
    return [key for key in every if not names or accepted[key] & set(names)]

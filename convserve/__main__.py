"""The command `convserve`: serve, classify, models, verify."""

from __future__ import annotations

import logging
import os
import sys
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from pydantic.fields import FieldInfo

from contract.errors import ContractError, ImageError, ModelError
from contract.predictions import to_predictions
from contract.preprocessing import read_input
from contract.telemetry import disable_runtime_telemetry
from contract.versions import find_versions
from service.errors import ModelNotFound, ProviderUnavailable
from service.models.engine import Run
from service.models.providers import PROVIDERS
from service.models.repository import (
    RunPlan,
    Shelf,
    load_repository,
    load_version,
    resolve_models_dir,
)
from service.settings import Settings, SettingsInvalid, from_environment
from service.system import process
from service.system.cpus import usable_cpus
from service.system.version import package_version

EXIT_NOT_SERVABLE = 3
"""The exit status where a model or a provider cannot be used, as uvicorn's for a failed start."""


@click.group()
@click.version_option(package_version(), prog_name="convserve")
def main() -> None:
    """Serve trained CNN image classifiers: a picture in, labelled probabilities out."""
    process.open_missing_streams()
    disable_runtime_telemetry()
    # Without a handler, logging would print bare messages; commands say what matters themselves.
    logging.getLogger("service").addHandler(logging.NullHandler())


def _settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command one option for every setting, described by the setting itself."""
    for name, field in reversed(Settings.model_fields.items()):
        flag = "--" + name.replace("_", "-")
        kind = _option_type(field)
        declaration = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
        default = "unset" if field.default is None else field.default
        command = click.option(
            declaration,
            name,
            type=None if kind is bool else kind,
            default=None,
            help=f"{field.description} [default: {default}]",
        )(command)
    return command


def _option_type(field: FieldInfo) -> Any:
    annotation: Any = field.annotation
    if typing.get_origin(annotation) is typing.Literal:
        return click.Choice(typing.get_args(annotation))
    if isinstance(annotation, types.UnionType):
        annotation = next(one for one in typing.get_args(annotation) if one is not types.NoneType)
    return {Path: click.Path(path_type=Path)}.get(annotation, annotation)


def _settings(overrides: dict[str, Any]) -> Settings:
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return from_environment(os.environ, given)
    except SettingsInvalid as error:
        raise click.UsageError(str(error)) from error


@main.command()
@click.option("--print-settings", is_flag=True, help="Print the effective settings and exit.")
@_settings_options
def serve(print_settings: bool, **overrides: Any) -> None:
    """Serve the model repository over HTTP.

    Every option is the environment variable CONVSERVE_<NAME> too; the option wins.
    """
    settings = _settings(overrides)
    if print_settings:
        click.echo(settings.model_dump_json(indent=1))
        return
    sys.exit(_serve(settings))


def _serve(settings: Settings) -> int:
    # Here, not above: the other commands start faster without the web framework.
    from service.app import create_app
    from service.http.server import DrainingServer
    from service.system.logs import LogWriter

    process.limit_freed_memory()
    logs = LogWriter(settings.log_level)
    logs.start()
    try:
        with process.within(settings.load_timeout_s, _give_up_loading):
            app = create_app(settings)
        logs.on_drop = app.state.service.metrics.log_records_dropped.inc
        with process.bound_socket(settings.host, settings.port) as listener:
            DrainingServer(app, settings).run(sockets=[listener])
    except (ModelError, ProviderUnavailable) as error:
        click.echo(f"convserve: not servable: {error}", err=True)
        return EXIT_NOT_SERVABLE
    except process.AddressUnusable as error:
        click.echo(f"convserve: {error}", err=True)
        return EXIT_NOT_SERVABLE
    finally:
        logs.stop()
    if not app.state.service.at_rest:
        process.leave_at_once(0)
    return 0


def _give_up_loading() -> None:
    click.echo("convserve: not servable: loading the models took too long", err=True)
    process.leave_at_once(EXIT_NOT_SERVABLE)


_models_option = click.option(
    "--models-dir",
    type=click.Path(path_type=Path),
    envvar="CONVSERVE_MODELS_DIR",
    help="The model repository [default: ./models, else the models that came with the package].",
)
_provider_option = click.option(
    "--provider",
    type=click.Choice(["auto", *PROVIDERS]),
    default="auto",
    show_default=True,
    help="Execution provider.",
)


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", help="Model name [default: as /v1/classify].")
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True)
@_models_option
@_provider_option
def classify(
    files: tuple[Path, ...], model: str | None, top_k: int, models_dir: Path | None, provider: str
) -> None:
    """Classify picture files without a server, through the very same code."""
    with _errors_as_messages():
        plan = RunPlan(provider, threads=usable_cpus(), max_batch_size=1)
        repository = load_repository(Shelf(_models_dir(models_dir), plan))
        version = repository.get(model)
    failed = False
    for file in files:
        try:
            row = read_input(file.read_bytes(), version.manifest)
        except (ImageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            click.echo(f"{file}: {reason}", err=True)
            failed = True
            continue
        probabilities = version.engine.run(row[None], Run())[0]  # (C,)
        click.echo(f"{file}")
        for prediction in to_predictions(probabilities, version.manifest, top_k):
            click.echo(f"  {prediction.probability:7.4f}  {prediction.label}")
    sys.exit(1 if failed else 0)


@main.command()
@_models_option
def models(models_dir: Path | None) -> None:
    """List the versions in the model repository."""
    directory = _models_dir(models_dir)
    found = find_versions(directory)
    for name, numbers in found.items():
        click.echo(f"{name}  {', '.join(str(number) for number in numbers)}")
    if not found:
        click.echo("no versions found", err=True)
        sys.exit(1)


@main.command()
@click.argument("names", nargs=-1)
@_models_option
@_provider_option
def verify(names: tuple[str, ...], models_dir: Path | None, provider: str) -> None:
    """Check versions as the service does before it serves them.

    NAMES are model names or name/version; all versions if none is given. Digests, the graph's
    signature and the golden examples are checked. The exit status is 1 if any version fails.
    """
    directory = _models_dir(models_dir)
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


def _models_dir(configured: Path | None) -> Path:
    return resolve_models_dir(configured, Path.cwd())


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    """Turns errors that have a message for people into one line and an exit status."""
    try:
        yield
    except (ContractError, ProviderUnavailable, ModelNotFound) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()

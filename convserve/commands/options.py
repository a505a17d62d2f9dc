"""Options that commands share, and errors as messages."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from pydantic.fields import FieldInfo

from contract.errors import ContractError
from service.errors import ModelNotFound, ProviderUnavailable
from service.models.providers import PROVIDERS
from service.models.repository import resolve_models_dir
from service.settings import Settings, SettingsInvalid, from_environment


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
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


def settings_of(overrides: dict[str, Any]) -> Settings:
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return from_environment(os.environ, given)
    except SettingsInvalid as error:
        raise click.UsageError(str(error)) from error


models_option = click.option(
    "--models-dir",
    type=click.Path(path_type=Path),
    envvar="CONVSERVE_MODELS_DIR",
    help="The model repository [default: ./models, else the models that came with the package].",
)
provider_option = click.option(
    "--provider",
    type=click.Choice(["auto", *PROVIDERS]),
    default="auto",
    show_default=True,
    help="Execution provider.",
)


def find_models_dir(configured: Path | None) -> Path:
    return resolve_models_dir(configured, Path.cwd())


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Turns errors that have a message for people into one line and an exit status."""
    try:
        yield
    except (ContractError, ProviderUnavailable, ModelNotFound) as error:
        raise click.ClickException(str(error)) from error

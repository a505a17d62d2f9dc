"""Options that several commands share, and their error messages."""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from contract.errors import ContractError, ImageError, RepositoryUnreadable
from contract.repository.changes import read_state
from contract.repository.file import repository_file_path
from service.errors import ProviderUnavailable
from service.models.limits import LoadLimits
from service.models.providers import PROVIDERS
from service.models.repository import no_versions, resolve_models_dir
from service.settings import Settings, SettingsInvalid, flag_of, from_environment, is_secret


class UserPath(click.Path):
    """A path with `~` expanded, which shells do not do in quotes or after `=`."""

    def __init__(self, *, dir_okay: bool = True) -> None:
        super().__init__(dir_okay=dir_okay, path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        return super().convert(os.path.expanduser(value), param, ctx)  # noqa: PTH111 - never raises


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds one option per setting to a command, with the setting's own description."""
    for name, field in reversed(Settings.model_fields.items()):
        if is_secret(name):
            continue
        flag = flag_of(name)
        kind = _option_type(field)
        declaration = f"{flag}/--no-{flag[2:]}" if kind is bool else flag
        default = field.default
        if kind is bool:
            default = flag[2:] if default else f"no-{flag[2:]}"
        # Without a default, the description says what happens.
        shown = "" if default in (None, "") else f" [default: {default}]"
        command = click.option(
            declaration,
            name,
            type=None if kind is bool else kind,
            default=None,  # not given: the environment variable or the setting's default counts
            help=f"{field.description}{shown}",
        )(command)
    return command


def _option_type(field: FieldInfo) -> Any:
    annotation: Any = field.annotation
    if typing.get_origin(annotation) is typing.Literal:
        return click.Choice(typing.get_args(annotation))
    if isinstance(annotation, types.UnionType):
        annotation = next(one for one in typing.get_args(annotation) if one is not types.NoneType)
    return UserPath() if annotation is Path else annotation


def settings_of(overrides: dict[str, Any]) -> Settings:
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return from_environment(os.environ, given)
    except SettingsInvalid as error:
        raise click.UsageError(str(error)) from error


def load_limits() -> LoadLimits:
    """Returns the limits of `convserve serve` for loading one version, from the environment."""
    settings = settings_of({})
    return LoadLimits(settings.load_timeout_s, settings.load_max_memory_bytes)


def _models_dir(context: click.Context, option: click.Parameter, given: Path | None) -> Path:
    # `convserve models --models-dir DIR migrate` means the same as the option at the end.
    before: Path | None = context.parent.params.get("models_dir") if context.parent else None
    typed = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
    return before if before and not typed else resolve_models_dir(given, Path.cwd())


models_option = click.option(
    "--models-dir",
    type=UserPath(),
    callback=_models_dir,
    envvar="CONVSERVE_MODELS_DIR",
    help="Model repository [default: ./models if it has a version, otherwise the models in the "
    "package].",
)
_REPOSITORY_FILE_HELP: Final = (
    "File that says what is served [default: repository.toml in the model repository]."
)
repository_file_option = click.option(
    "--repository-file",
    type=UserPath(dir_okay=False),
    envvar="CONVSERVE_REPOSITORY_FILE",
    help=_REPOSITORY_FILE_HELP,
)


def _remember_file(context: click.Context, _option: click.Parameter, given: Path | None) -> None:
    context.meta[__name__] = given


# For commands that read the file only to find a version, with `choose_version`.
choosing_file_option = click.option(
    "--repository-file",
    type=UserPath(dir_okay=False),
    envvar="CONVSERVE_REPOSITORY_FILE",
    expose_value=False,
    callback=_remember_file,
    help=_REPOSITORY_FILE_HELP,
)
provider_option = click.option(
    "--provider",
    type=click.Choice(["auto", *PROVIDERS]),
    default="auto",
    show_default=True,
    help="Execution provider; auto uses CUDA if it works and the CPU otherwise.",
)


def choose_version(models_dir: Path, model: str | None) -> tuple[str, int]:
    """Resolves NAME, NAME/VERSION, NAME/ALIAS or None as a service does.

    A version by its number may be any that is there, whether a service loads it or not.

    Raises:
        RepositoryError: the models or repository.toml cannot be read.
        click.ClickException: there is no such version, or none that answers.
    """
    file = click.get_current_context().meta.get(__name__)
    try:
        state = read_state(models_dir, repository_file_path(models_dir, file))
    except RepositoryUnreadable as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise click.ClickException(no_versions(models_dir)) from error
        raise
    names = state.listing.names
    if not names:
        raise click.ClickException(no_versions(models_dir))
    if model is None and state.decision.default is None:
        raise click.ClickException(
            f"no default model is set; name one of these: {', '.join(names)}"
        )

    name, _, version = (model or state.decision.default or "").partition("/")
    if name not in state.decision.models or (model is not None and name not in names):
        raise click.ClickException(f"no model {name!r}; there are: {', '.join(names)}")
    decided, found = state.decision.models[name], state.listing.models.get(name, {})
    if not version:
        if decided.answer is None:
            raise click.ClickException(f"{name} cannot answer: {decided.trouble}")
        return name, decided.answer
    known = {str(number): number for number in found} | dict(state.policy(name).aliases)
    if known.get(version) not in found:
        raise click.ClickException(
            f"no version {version!r} of {name}; there are: {', '.join(known) or 'none'}"
        )
    return name, known[version]


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Turns errors of models and providers into a one-line message and exit status 1."""
    try:
        yield
    except (ContractError, ProviderUnavailable) as error:
        raise click.ClickException(str(error)) from error


def reason(error: ImageError | OSError) -> str:
    # str(OSError) would repeat the file's name.
    return (error.strerror if isinstance(error, OSError) else None) or str(error)

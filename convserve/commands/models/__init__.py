"""`convserve models`: shows what is served from the model repository, and changes it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from convserve.commands.lazy import LazyGroup
from convserve.commands.options import models_option, repository_file_option

SUBCOMMANDS: Final = {
    "list": "List the versions and which of them answer; also without a command.",
    "show": "Describe a model or one version.",
    "diff": "Compare two versions: labels, metrics, size, speed and answers.",
    "pin": "Make a version answer, whatever is published later.",
    "unpin": "Let the newest version answer that satisfies the requirements.",
    "default": "Set the model of requests that name none.",
    "alias": "Give a version another name, such as stable.",
    "promote": "Make a version answer: move the alias that answers, or pin it.",
    "rollback": "Make the version answer that did before.",
    "load": "Load a model, or a version beside the one that answers.",
    "unload": "Unload a model, or a version that does not answer.",
    "relabel": "Rename classes into a new version, without training.",
    "remove": "Delete a version that is not served.",
    "gc": "Delete old versions that are not served.",
    "migrate": "Publish versions that have an old manifest again.",
}
_PLACES: Final = {
    "list": "showing.list_models",
    "show": "showing.show",
    **{
        name: f"answering.{name}"
        for name in ("pin", "unpin", "default", "alias", "promote", "rollback")
    },
    "load": "loading.load",
    "unload": "loading.unload",
    "remove": "removing.remove",
    "gc": "removing.gc",
}


@click.group(
    cls=LazyGroup,
    package=__name__,
    table=SUBCOMMANDS,
    places=_PLACES,
    invoke_without_command=True,
)
@models_option
@repository_file_option
@click.pass_context
def models(context: click.Context, models_dir: Path, repository_file: Path | None) -> None:
    """Show what is served from the model repository, and change it.

    The commands edit repository.toml, which says what a service serves. A running service applies the
    change by itself. Without a command, the models are listed.
    """
    context.obj = models_dir, repository_file
    if context.invoked_subcommand is None:
        command = models.get_command(context, "list")
        assert command is not None  # noqa: S101 - it is in the table
        context.invoke(command)

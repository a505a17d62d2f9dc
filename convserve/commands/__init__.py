"""One module per command, imported only when that command runs."""

from __future__ import annotations

import importlib
import logging
from typing import Final

import click

from contract.telemetry import disable_runtime_telemetry
from service.system import process
from service.system.version import package_version

# The texts for `--help`. Taking them from the commands would import all of them.
COMMANDS: Final = {
    "serve": "Serve the model repository over HTTP.",
    "classify": "Classify picture files without a server.",
    "loadtest": "Measure a server under load.",
    "tune": "Measure throughput on this machine and suggest settings.",
    "models": "List the versions in the model repository, or migrate them.",
    "verify": "Verify versions as the service does before it serves them.",
}


class LazyGroup(click.Group):
    """Imports a command from the module of the same name."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(
            importlib.import_module(f"{__name__}.{cmd_name}"), cmd_name
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup)
@click.version_option(package_version(), prog_name="convserve")
def convserve() -> None:
    """Serve trained CNN image classifiers: a picture in, labelled probabilities out."""
    process.open_missing_streams()
    disable_runtime_telemetry()
    # Without a handler, Python prints warnings as bare messages. Commands print their own.
    logging.getLogger("service").addHandler(logging.NullHandler())

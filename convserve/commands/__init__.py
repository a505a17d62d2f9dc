"""One module per command, imported only when that command runs."""

from __future__ import annotations

import logging
from typing import Final

import click

from contract.telemetry import disable_runtime_telemetry
from convserve.commands.lazy import LazyGroup
from service.system import process
from service.system.version import package_version

COMMANDS: Final = {
    "serve": "Serve the model repository over HTTP.",
    "classify": "Classify picture files without a server.",
    "loadtest": "Measure a server under load.",
    "tune": "Measure throughput on this machine and suggest settings.",
    "models": "List and compare the models, and change which versions are served.",
    "verify": "Judge the model repository as a start of the service does.",
}


@click.group(cls=LazyGroup, package=__name__, table=COMMANDS)
@click.version_option(package_version(), prog_name="convserve")
def convserve() -> None:
    """Serve trained CNN image classifiers: a picture in, labelled probabilities out."""
    process.open_missing_streams()
    disable_runtime_telemetry()
    # Without a handler, Python prints warnings as bare messages. Commands print their own.
    logging.getLogger("service").addHandler(logging.NullHandler())

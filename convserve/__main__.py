"""The command `convserve`."""

from __future__ import annotations

import logging
import sys

import click

from convserve import neighbours

if complaint := neighbours.complaint("contract", "service"):
    # Here, because the imports below would fail first, deep inside of somebody else's package.
    sys.stderr.write(f"convserve: {complaint}\n")
    sys.exit(neighbours.EXIT_FOREIGN_PACKAGE)

from contract.telemetry import disable_runtime_telemetry
from convserve.commands.classify import classify
from convserve.commands.models import models
from convserve.commands.serve import serve
from convserve.commands.tune import tune
from convserve.commands.verify import verify
from service.system import process
from service.system.version import package_version


@click.group()
@click.version_option(package_version(), prog_name="convserve")
def main() -> None:
    """Serve trained CNN image classifiers: a picture in, labelled probabilities out."""
    process.open_missing_streams()
    disable_runtime_telemetry()
    # Without a handler, logging would print bare messages; commands say what matters themselves.
    logging.getLogger("service").addHandler(logging.NullHandler())


for command in (serve, classify, tune, models, verify):
    main.add_command(command)


if __name__ == "__main__":
    main()

"""Begins a start again without a version that exceeded its limits.

Native code that does not return ends only with its process. So the process is replaced by a fresh one of
the same command, with the same id, which also works as PID 1 of a container. It learns from a private
variable which versions it must refuse, and why. Each restart adds one, so there is an end to them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Final

import click

from service.models.limits import VersionId
from service.models.starting import EXIT_NOT_SERVABLE, StartGuard
from service.system import process
from service.system.logs import LogWriter

log = logging.getLogger(__name__)

_VARIABLE: Final = "_CONVSERVE_REFUSED"


def restarting_guard(logs: LogWriter) -> StartGuard:
    """Returns the guard of a start that begins again when a version exceeds the limits."""
    return StartGuard(refused_versions(os.environ), partial(_begin_again, logs))


def refused_versions(environment: Mapping[str, str]) -> dict[VersionId, str]:
    """Returns the versions that this process must refuse, and the reasons."""
    return {
        (name, number, digest): reason
        for name, number, digest, reason in json.loads(environment.get(_VARIABLE, "[]"))
    }


def refusing(version: VersionId, reason: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a process that refuses `version`, and all that this one refuses."""
    refused = {**refused_versions(environment), version: reason}
    return {**environment, _VARIABLE: json.dumps([[*one, why] for one, why in refused.items()])}


def _begin_again(logs: LogWriter, version: VersionId, reason: str) -> None:
    name, number, _ = version
    log.error(
        "starting again without a version",
        extra={"model": name, "version": number, "reason": reason},
    )
    logs.stop()
    try:
        process.restart(refusing(version, reason, os.environ))
    except OSError as error:
        click.echo(f"convserve: cannot serve: {name}/{number}: {reason}; {error}", err=True)
        process.exit_now(EXIT_NOT_SERVABLE)

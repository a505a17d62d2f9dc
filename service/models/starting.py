"""Loads versions at the start of the process: in place, within limits.

A second process would need its own interpreter and runtime, which is much in a small container. In place,
native code that never returns can be ended only together with the process. So whoever starts the service
decides what happens when a limit is exceeded: `convserve serve` begins again as a fresh process that
refuses this version. A version that crashes the process (SIGSEGV) crashes the start; nothing in the same
process can prevent that.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from contract.errors import VersionTooCostly
from contract.versions import read_manifest
from service.models.limits import CHECK_INTERVAL_S, LoadLimits, VersionId
from service.models.repository import EngineConfig, LoadedVersion, load_version
from service.system import process

log = logging.getLogger(__name__)

EXIT_NOT_SERVABLE: Final = 3  # as uvicorn's for a failed start


def exit_not_servable(version: VersionId, reason: str) -> None:
    """Ends the process: the default for those who start the service in their own way."""
    name, number, _ = version
    log.critical("cannot serve", extra={"model": name, "version": number, "reason": reason})
    process.exit_now(EXIT_NOT_SERVABLE)


@dataclass(frozen=True, slots=True)
class StartGuard:
    """What a start does about versions that exceed the limits.

    Attributes:
        refused: versions that did so in an earlier attempt of this start, and the reasons.
        give_up: called on another thread while the version is still being loaded, with its id and
            the reason. It should not return; if it does, the version is refused once it is loaded.
    """

    refused: Mapping[VersionId, str] = field(default_factory=dict)
    give_up: Callable[[VersionId, str], object] = exit_not_servable


def load_watched(
    limits: LoadLimits,
    guard: StartGuard,
    models_dir: Path,
    name: str,
    number: int,
    engine_config: EngineConfig,
) -> LoadedVersion:
    """Loads and verifies one version in this process, within the limits.

    Raises:
        ModelError, ProviderUnavailable: as `load_version`.
        VersionTooCostly: it exceeds the limits, now or in an earlier attempt.
    """
    _, digest = read_manifest(models_dir, name, number)
    version = (name, number, digest)
    if reason := guard.refused.get(version):
        raise VersionTooCostly(f"{name}/{number}: {reason}")

    try:
        with watched(limits, partial(guard.give_up, version)):
            return load_version(models_dir, name, number, engine_config, manifest_sha256=digest)
    except LimitExceeded as error:
        raise VersionTooCostly(f"{name}/{number}: {error}") from error


class LimitExceeded(Exception):
    """The block under watch took more time or memory than it may."""


@contextmanager
def watched(limits: LoadLimits, give_up: Callable[[str], object]) -> Iterator[None]:
    """Calls `give_up` with the reason, on another thread, if the block exceeds the limits.

    Memory counts from the beginning of the block. The block is not interrupted, but cannot end while
    `give_up` runs.

    Raises:
        LimitExceeded: `give_up` was called and has returned.
    """
    exceeded: list[str] = []
    ended, deciding = threading.Event(), threading.Lock()
    budget = limits.begin(os.getpid())

    def watch() -> None:
        while not ended.wait(CHECK_INTERVAL_S):
            if (reason := budget.exceeded()) is not None:
                with deciding:
                    if not ended.is_set():
                        exceeded.append(reason)
                        give_up(reason)
                return

    thread = threading.Thread(target=watch, name="load watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        with deciding:
            ended.set()
        thread.join()
        if exceeded:
            raise LimitExceeded(exceeded[0])

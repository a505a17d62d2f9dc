"""A child process: loads and proves the versions it is told to, and works on one batch after the other.

    python -m service.workers <file descriptor of its end of the socket pair> <parent's id>

The first frame is START: the model repository, how to run, and name, number and manifest digest of each
version. It answers READY with what it found, or FAILED. From then on it is a blocking loop: read a
batch, prepare it, run it, write what became of it. It exits when the connection ends, which it does
when the front exits in whatever way. SIGTERM asks the front to be replaced and changes nothing else, so
that a signal to a whole group of processes does not take the children away from a front that is
draining. SIGINT and SIGHUP are the front's business.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, cast

from contract.errors import ContractError, ImageError, VersionCorrupt
from contract.images import ImageLimits, inspect
from contract.telemetry import disable_runtime_telemetry
from service.batching.lane import BatchItem, BatchJob, Outcome, RowResult
from service.batching.work import Preparation, work_on
from service.errors import ProviderUnavailable
from service.models.engine import Run
from service.models.repository import EngineConfig, LoadedVersion, load_version
from service.system import process
from service.system.logs import LogWriter
from service.workers import wire
from service.workers.wire import FrameKind, WireError

log = logging.getLogger(__name__)

EXIT_NOT_SERVABLE: Final = 3
_OOM_SCORE: Final = 800


class Worker:
    """The child's end of the connection, after the start."""

    def __init__(
        self, sock: socket.socket, versions: list[LoadedVersion], limits: ImageLimits
    ) -> None:
        self._sock = sock
        self._versions = versions
        self._limits = limits
        self._retiring = False
        self._idle = False  # waiting for a batch, so that a signal handler may write

    def retire(self, *_: object) -> None:
        """Asks the front for a successor; until it closes the connection, everything goes on."""
        self._retiring = True
        if self._idle:
            self._ask_for_successor()

    def serve(self) -> None:
        """Works until the connection ends."""
        while (work := self._next()) is not None:
            self._sock.sendall(b"".join(wire.pack_done(self.answer(work))))

    def answer(self, work: wire.WireBatch) -> wire.WireBatchDone:
        """Prepares and runs one batch."""
        version, now_s = self._versions[work.version], time.monotonic()
        found = [self._item(picture, version, now_s) for picture in work.pictures]
        items = [item for item in found if isinstance(item, BatchItem)]
        job = BatchJob(version, items, Run(wide=work.wide), now_s)
        work_on(job, time.monotonic)

        outcomes = {id(item): outcome for item, outcome in job.outcomes}
        rows = [
            _on_the_wire(one, outcomes.get(id(one))) if isinstance(one, BatchItem) else one
            for one in found
        ]
        return wire.WireBatchDone(rows, job.runs, job.work_s)

    def _next(self) -> wire.WireBatch | None:
        self._idle = True
        if self._retiring:  # after `_idle`: a signal is noticed here or by its handler
            self._ask_for_successor()
        try:
            frame = wire.read_frame(self._receive)
        finally:
            self._idle = False
        if frame is None:
            return None
        if frame.kind is not FrameKind.WORK:
            raise WireError(f"a front does not send {frame.kind.name}")
        return wire.unpack_work(frame.payload)

    def _receive(self, size: int) -> bytes | None:
        return receive_exactly(self._sock, size)

    def _ask_for_successor(self) -> None:
        self._idle = self._retiring = False  # another signal must not write into this frame
        self._sock.sendall(b"".join(wire.pack(FrameKind.RETIRE)))
        self._idle = True

    def _item(
        self, picture: wire.WirePicture, version: LoadedVersion, now_s: float
    ) -> BatchItem | ImageError:
        deadline_s = now_s + picture.remaining_s
        try:
            file = inspect(picture.image, self._limits)  # as the front has done
        except ImageError as error:
            return error
        return BatchItem(Preparation(file, version.manifest, deadline_s), deadline_s, now_s)


def _on_the_wire(item: BatchItem, outcome: Outcome | None) -> wire.WireRow | Exception | None:
    if not isinstance(outcome, RowResult):
        return outcome
    recipe = cast(Preparation, item.item)
    return wire.WireRow(outcome, recipe.decode_s, recipe.preprocess_s)


def receive_exactly(sock: socket.socket, size: int) -> bytes | None:
    """Returns so many bytes, or None if the stream ended before; blocks."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        n = sock.recv_into(view[got:])
        if not n:
            return None
        got += n
    return bytes(data)


def load(plan: dict[str, Any]) -> tuple[list[LoadedVersion], list[dict[str, Any]]]:
    """Loads and proves the versions of a plan.

    Returns:
        The versions, and for each what the front wants to know of it.

    Raises:
        ModelError: a version cannot be served, or is not the one that was meant.
        ProviderUnavailable: the provider asked for cannot be used here.
    """
    models_dir, engine_config = Path(plan["models_dir"]), EngineConfig(**plan["run"])
    versions = []
    for name, number, manifest_sha256 in plan["versions"]:
        version = load_version(models_dir, name, number, engine_config)
        if version.manifest_sha256 != manifest_sha256:
            raise VersionCorrupt(f"{name}/{number}: it was replaced while it was being loaded")
        versions.append(version)
    return versions, [_facts(version) for version in versions]


def _facts(version: LoadedVersion) -> dict[str, Any]:
    return {
        "provider": version.provider,
        "fallback": asdict(version.fallback) if version.fallback else None,
        "golden_difference": version.golden_difference,
        "max_batch_size": version.max_batch_size,
        "load_s": version.load_s,
    }


def main() -> None:
    """Runs a child until its connection ends."""
    number = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process.open_missing_streams()
    process.limit_freed_memory()
    disable_runtime_telemetry()
    _die_first()
    process.exit_now(_run(socket.socket(fileno=number)))


def _run(sock: socket.socket) -> int:
    try:
        frame = wire.read_frame(lambda size: receive_exactly(sock, size))
        plan = wire.unpack_json(frame.payload) if frame else None
    except (OSError, WireError):
        plan = None
    if plan is None:  # whoever started it has gone
        return EXIT_NOT_SERVABLE

    logs = LogWriter(plan["log_level"])
    logs.start()
    try:
        try:
            versions, facts = load(plan)
        except Exception as error:
            if not isinstance(error, ContractError | ProviderUnavailable):
                log.exception("a worker process could not start")
            sock.sendall(b"".join(wire.pack_failed(error)))
            return EXIT_NOT_SERVABLE
        child = Worker(sock, versions, ImageLimits(**plan["limits"]))
        signal.signal(signal.SIGTERM, child.retire)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # as the front has it blocked
        sock.sendall(b"".join(wire.pack_json(FrameKind.READY, {"versions": facts})))
        child.serve()
    except (OSError, WireError):  # the front went away meanwhile, perhaps within a frame
        return EXIT_NOT_SERVABLE
    finally:
        logs.stop()
    return 0


def _die_first() -> None:
    """Makes the system take this process rather than the front when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE), encoding="ascii")

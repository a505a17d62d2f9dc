"""A child process: loads and verifies its versions, then works on one batch at a time.

    python -m service.workers <file descriptor of its end of the socket pair> <parent's process id>

The first frame is START: the model repository, how to run, and for each version its name, number and
manifest digest, and what another child found with its golden examples, or null. The child sends LOADING before it loads each, and READY with facts about them, or FAILED.
Then it loops: read a batch,
prepare it, run it, write the outcomes. It exits when the connection ends, and that happens however the
front exits.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, cast

from contract.errors import ContractError, ImageError
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
_OOM_SCORE: Final = 800  # of 1,000; when memory runs out, the kernel kills this before the front


class Worker:
    """The child's end of the connection once its versions are loaded."""

    def __init__(
        self, sock: socket.socket, versions: list[LoadedVersion], limits: ImageLimits
    ) -> None:
        self._sock = sock
        self._versions = versions
        self._limits = limits
        self._retiring = False  # RETIRE has still to be sent
        self._idle = False  # waiting for a batch, so a signal handler may write to the socket

    def retire(self, *_: object) -> None:
        """Handles SIGTERM: asks the front to be replaced, and works on until it is."""
        # A signal to the whole process group must not take the children away from a draining front.
        self._retiring = True
        if self._idle:
            self._request_replacement()

    def serve(self) -> None:
        while (work := self._next()) is not None:
            self._sock.sendall(b"".join(wire.pack_done(self.answer(work))))

    def answer(self, work: wire.WireBatch) -> wire.WireBatchDone:
        version, now_s = self._versions[work.version], time.monotonic()
        # In order: for each picture an item, or the error of its header.
        inspected = [self._inspect(picture, version, now_s) for picture in work.pictures]
        items = [one for one in inspected if isinstance(one, BatchItem)]
        job = BatchJob(version, items, Run(all_cores=work.all_cores), now_s)
        work_on(job, time.monotonic)

        outcomes = {id(item): outcome for item, outcome in job.outcomes}
        rows = [
            _to_wire(one, outcomes.get(id(one))) if isinstance(one, BatchItem) else one
            for one in inspected
        ]
        return wire.WireBatchDone(rows, job.runs, job.work_s)

    def _next(self) -> wire.WireBatch | None:
        self._idle = True
        if self._retiring:  # after `_idle` is set, so that a signal in between is not missed
            self._request_replacement()
        try:
            frame = wire.read_frame(self._receive)
        finally:
            self._idle = False

        if frame is None:
            return None
        if frame.kind is not FrameKind.WORK:
            raise WireError(f"unexpected {frame.kind.name} frame from the front")
        return wire.unpack_work(frame.payload)

    def _receive(self, size: int) -> bytes | None:
        return receive_exactly(self._sock, size)

    def _request_replacement(self) -> None:
        self._idle = self._retiring = False  # another signal must not write into this frame
        self._sock.sendall(b"".join(wire.pack(FrameKind.RETIRE)))
        self._idle = True

    def _inspect(
        self, picture: wire.WirePicture, version: LoadedVersion, now_s: float
    ) -> BatchItem | ImageError:
        deadline_s = now_s + picture.remaining_s
        try:
            file = inspect(picture.image, self._limits)  # as the front has done
        except ImageError as error:
            return error
        recipe = Preparation(file, version.manifest, deadline_s)
        return BatchItem(recipe, deadline_s, now_s, picture.wanted)


def _to_wire(item: BatchItem, outcome: Outcome | None) -> wire.WireRow | Exception | None:
    if not isinstance(outcome, RowResult):
        return outcome
    recipe = cast(Preparation, item.item)
    return wire.WireRow(outcome, recipe.decode_s, recipe.preprocess_s)


def receive_exactly(sock: socket.socket, size: int) -> bytes | None:
    """Returns `size` bytes, or None if the stream ends first; blocks."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        n = sock.recv_into(view[got:])
        if not n:
            return None
        got += n
    return bytes(data)


def load(
    start: dict[str, Any], on_loading: Callable[[], object]
) -> tuple[list[LoadedVersion], list[dict[str, Any]]]:
    """Loads the versions of a START message, and verifies those that nobody has verified yet.

    Calls `on_loading` before each.

    Returns:
        The versions, and for each the facts that the front puts into its `LoadedVersion`.

    Raises:
        ModelError: a version cannot be served, or its manifest has another digest.
        ProviderUnavailable: the provider cannot be used here.
    """
    models_dir, engine_config = Path(start["models_dir"]), EngineConfig(**start["run"])
    versions = []
    for name, number, manifest_sha256, golden_difference in start["versions"]:
        on_loading()
        version = load_version(
            models_dir,
            name,
            number,
            engine_config,
            manifest_sha256=manifest_sha256,
            golden_difference=golden_difference,
        )
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
    number = int(sys.argv[1])
    # Ctrl-C and a closed terminal reach the whole process group; the front handles them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process.open_missing_streams()
    process.limit_freed_memory()
    disable_runtime_telemetry()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE), encoding="ascii")
    process.exit_now(_run(socket.socket(fileno=number)))


def _run(sock: socket.socket) -> int:
    try:
        frame = wire.read_frame(lambda size: receive_exactly(sock, size))
        start = wire.unpack_json(frame.payload) if frame else None
    except (OSError, WireError):
        start = None
    if start is None:  # the front is gone
        return EXIT_NOT_SERVABLE

    logs = LogWriter(start["log_level"])
    logs.start()
    try:
        try:
            loading = b"".join(wire.pack(FrameKind.LOADING))
            versions, facts = load(start, lambda: sock.sendall(loading))
        except Exception as error:
            if not isinstance(error, ContractError | ProviderUnavailable):
                log.exception("a worker process could not start")
            sock.sendall(b"".join(wire.pack_failed(error)))
            return EXIT_NOT_SERVABLE

        worker = Worker(sock, versions, ImageLimits(**start["limits"]))
        signal.signal(signal.SIGTERM, worker.retire)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # the front has it blocked
        sock.sendall(b"".join(wire.pack_json(FrameKind.READY, {"versions": facts})))
        worker.serve()
    except (OSError, WireError):  # the front is gone, perhaps in the middle of a frame
        return EXIT_NOT_SERVABLE
    finally:
        logs.stop()
    return 0

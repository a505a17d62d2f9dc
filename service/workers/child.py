"""A worker process: loads and proves the versions it is told to, and answers frames.

    python -m service.workers.child <file descriptor of its end of the socket pair> <parent's id>

The first frame is START: the settings, the model repository, name, number and manifest digest of each
version, and how many cores are its share. It answers READY with what it found, or FAILED. From then on
it answers pictures out of order, and pings from its event loop. It exits when the connection ends,
which it does when the front exits in whatever way. SIGTERM asks the front to be replaced and changes
nothing else, so that a signal to a whole group of processes does not take the workers away from a
front that is draining. SIGINT is the front's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, cast

from contract.errors import ContractError
from contract.telemetry import disable_runtime_telemetry
from service.errors import ModelNotFound, ProviderUnavailable, ServiceError
from service.serving.backend import Backend, LocalLanes
from service.settings import Settings
from service.system import process
from service.system.logs import LogWriter
from service.workers import wire
from service.workers.lanes import Reporter, load_lanes
from service.workers.launch import receive
from service.workers.wire import Ask, Frame, FrameReader, Kind, Pong, WireBroken, Worked

log = logging.getLogger(__name__)

EXIT_NOT_SERVABLE: Final = 3
_START_S: Final = 60.0
_OOM_SCORE: Final = 800
_PR_SET_PDEATHSIG: Final = 1


class Worker(asyncio.Protocol):
    """The worker's end of the connection."""

    def __init__(
        self, lanes: Backend, max_image_bytes: int, resident_bytes: Callable[[], int]
    ) -> None:
        """Prepares; the connection is made on the event loop.

        Args:
            lanes: answers.
            max_image_bytes: of one picture.
            resident_bytes: memory of this process.
        """
        self._lanes = lanes
        self._resident_bytes = resident_bytes
        self._reader = FrameReader(wire.max_ask_bytes(max_image_bytes))
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport; part of asyncio's protocol."""
        # Not isinstance: the transports of uvloop are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The front is gone or has closed; part of asyncio's protocol."""
        for task in self._tasks.values():
            task.cancel()
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Takes what the front says; part of asyncio's protocol."""
        try:
            for frame in self._reader.feed(data):
                self._handle(frame)
        except WireBroken:
            log.exception("the front broke the protocol")
            if self._transport is not None:
                self._transport.abort()

    def retire(self) -> None:
        """Asks the front to replace this worker; until it closes, everything goes on."""
        self._write(wire.pack(Kind.RETIRE))

    def report(self, worked: Worked) -> None:
        """Says what a lane did."""
        self._write(wire.pack_worked(worked))

    def _handle(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.ASK:
                task = asyncio.create_task(self._answer(frame.id, wire.unpack_ask(frame.payload)))
                self._tasks[frame.id] = task
                task.add_done_callback(partial(self._answered, frame.id))
            case Kind.CANCEL:
                if (known := self._tasks.get(frame.id)) is not None:
                    known.cancel()
            case Kind.PING:
                pong = Pong(self._lanes.alive, self._resident_bytes())
                self._write(wire.pack_pong(frame.id, pong))
            case _:
                raise WireBroken(f"a front does not send {frame.kind.name}")

    async def _answer(self, number: int, ask: Ask) -> None:
        """Sends a reply, whatever happens; if cancelled, `_answered` does."""
        try:
            answerer = self._lanes.answerers.get((ask.name, ask.version))
            if answerer is None:
                raise ModelNotFound("this worker does not serve this version")
            answered = await answerer.answer(ask.image, time.monotonic() + ask.remaining_s)
            reply = wire.pack_answer(number, answered)
        except (ContractError, ServiceError) as error:
            reply = wire.pack_refusal(number, error)
        except Exception as error:
            # A bug costs this picture, not the worker.
            log.exception("a picture failed in the worker")
            reply = wire.pack_refusal(number, error)
        self._write(reply)

    def _answered(self, number: int, task: asyncio.Task[None]) -> None:
        del self._tasks[number]
        if task.cancelled():  # perhaps before it began
            self._write(wire.pack(Kind.CANCELLED, number))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def main() -> None:
    """Runs a worker until its connection ends."""
    number, parent = int(sys.argv[1]), int(sys.argv[2])
    process.open_missing_streams()
    process.limit_freed_memory()
    disable_runtime_telemetry()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    _die_first()
    sock = socket.socket(fileno=number)
    process.leave_at_once(_serve(sock))


def _serve(sock: socket.socket) -> int:
    try:
        plan = wire.unpack_json(receive(sock, time.monotonic() + _START_S).payload)
    except (OSError, EOFError, WireBroken):  # whoever started it has gone
        return EXIT_NOT_SERVABLE
    settings = Settings.model_validate(plan["settings"])
    logs = LogWriter(settings.log_level)
    logs.start()
    try:
        models_dir, cpus, reporter = Path(plan["models_dir"]), plan["cpus"], Reporter()
        try:
            lanes, facts = load_lanes(
                settings, models_dir, plan["versions"], cpus, reporter.observers
            )
        except Exception as error:
            if not isinstance(error, ContractError | ProviderUnavailable):
                log.exception("a worker could not start")
            sock.sendall(wire.pack_refusal(0, error, Kind.FAILED))
            return EXIT_NOT_SERVABLE
        sock.sendall(wire.pack_json(Kind.READY, {"versions": facts}))
        asyncio.run(_answer_until_closed(sock, lanes, reporter, settings))
    except OSError:  # the front went away meanwhile
        return EXIT_NOT_SERVABLE
    finally:
        logs.stop()
    return 0


async def _answer_until_closed(
    sock: socket.socket, lanes: LocalLanes, reporter: Reporter, settings: Settings
) -> None:
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    worker = Worker(lanes, settings.max_body_bytes, resident_bytes)
    reporter.send = worker.report
    lanes.start()
    loop.add_signal_handler(signal.SIGTERM, worker.retire)
    await loop.create_unix_connection(lambda: worker, sock=sock)
    await worker.closed


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Returns the memory of this process in bytes; 0 where the system does not say."""
    try:
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _die_with(parent: int) -> None:
    """Has the system end this process with its parent, even while it hangs; Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        process.leave_at_once(EXIT_NOT_SERVABLE)


def _die_first() -> None:
    """Makes the system take this process rather than the front when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE), encoding="ascii")


if __name__ == "__main__":
    main()

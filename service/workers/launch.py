"""Starts child processes: a fresh interpreter, a socket pair, and the first two messages.

It does not fork, because the front has threads and an event loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from contract.errors import ModelError
from service.errors import ProviderUnavailable, WorkerNotStarted
from service.system.threads import DaemonThread
from service.workers import wire
from service.workers.wire import FrameKind, WireError

_MODULE: Final = "service.workers"


class ProcessHandle(Protocol):
    """A child process as `subprocess.Popen` presents it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def kill(self) -> None: ...

    def wait(self) -> int: ...


@dataclass(frozen=True, slots=True)
class LaunchedWorker:
    """A child process that is ready.

    Attributes:
        process: to kill it and to wait for its exit.
        sock: the front's end of the connection, not yet on an event loop.
        facts: from READY, one entry per version, in the order of the START message.
    """

    process: ProcessHandle
    sock: socket.socket
    facts: list[dict[str, Any]]

    def abort(self) -> None:
        self.process.kill()
        self.sock.close()
        self.process.wait()


class WorkerLauncher(Protocol):
    """Starts children for one set of versions."""

    async def launch(self) -> LaunchedWorker:
        """Starts a child and returns it when it is ready.

        Raises:
            ModelError, ProviderUnavailable: it cannot serve its versions, or does not start.
        """
        ...


class ProcessLauncher:
    """Starts real processes for a set of versions; a `WorkerLauncher`."""

    def __init__(self, start_message: dict[str, Any], timeout_s: float) -> None:
        self._start_message = start_message
        self._timeout_s = timeout_s  # a child that is not ready by then is killed

    async def launch(self) -> LaunchedWorker:
        starting = self._spawn()
        thread = DaemonThread("launch")  # reading from the child blocks
        try:
            return await asyncio.wrap_future(thread.submit(starting.wait_ready))
        except BaseException:
            starting.abort()
            raise
        finally:
            thread.close()

    def launch_now(self, count: int) -> list[LaunchedWorker]:
        """Starts `count` children at the same time and waits for all of them; blocks.

        The calling thread must outlive them, because Linux kills them with it.

        Raises:
            ModelError, ProviderUnavailable: one of them failed; the others have been killed.
        """
        starting = [self._spawn() for _ in range(count)]
        try:
            with ThreadPoolExecutor(count, "launch") as pool:
                return list(pool.map(_StartingWorker.wait_ready, starting))
        except BaseException:
            for one in starting:
                one.abort()
            raise

    def _spawn(self) -> _StartingWorker:
        ours, theirs = socket.socketpair()
        # The child runs the code of this process, wherever that was imported from.
        search_path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": search_path},
            )
        until_s = time.monotonic() + self._timeout_s
        return _StartingWorker(process, ours, self._start_message, until_s)


@dataclass(frozen=True, slots=True)
class _StartingWorker:
    """A child process that is loading its versions."""

    process: subprocess.Popen[bytes]
    sock: socket.socket
    start_message: dict[str, Any]
    until_s: float

    def wait_ready(self) -> LaunchedWorker:
        """Sends START and returns when READY has come; blocks."""
        try:
            self.sock.settimeout(self._remaining_s())
            self.sock.sendall(b"".join(wire.pack_json(FrameKind.START, self.start_message)))
            frame = wire.read_frame(self._receive)
        except TimeoutError as error:
            raise WorkerNotStarted("a worker process was not ready in time") from error
        except (OSError, WireError) as error:
            raise WorkerNotStarted(f"a worker process {self._how_it_failed()}") from error

        if frame is None:
            raise WorkerNotStarted(f"a worker process {self._how_it_failed()}")
        if frame.kind is FrameKind.FAILED:
            failure = wire.unpack_failed(frame.payload)
            if isinstance(failure, ModelError | ProviderUnavailable):
                raise failure
            raise WorkerNotStarted("a worker process failed to start; its log says why")
        if frame.kind is not FrameKind.READY:
            raise WorkerNotStarted(f"a worker process sent {frame.kind.name} instead of READY")

        self.sock.setblocking(False)
        return LaunchedWorker(self.process, self.sock, wire.unpack_json(frame.payload)["versions"])

    def abort(self) -> None:
        # Also while `wait_ready` blocks on another thread: its read then ends.
        self.process.kill()
        self.process.wait()
        self.sock.close()

    def _receive(self, size: int) -> bytes | None:
        # Not a byte more than the frame: what follows belongs to the event loop.
        data = b""
        while len(data) < size:
            self.sock.settimeout(self._remaining_s())
            piece = self.sock.recv(size - len(data))
            if not piece:
                return None
            data += piece
        return data

    def _remaining_s(self) -> float:
        return max(0.01, self.until_s - time.monotonic())  # 0 would mean non-blocking

    def _how_it_failed(self) -> str:
        try:
            status = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "broke the protocol"
        how = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
        return f"{how} while it was starting"

"""Starts child processes: a fresh interpreter, a socket pair, and the first two messages.

Not a fork: the front has threads and an event loop. The child gets this process's module search path,
so that it runs the same code wherever that came from.
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
from service.workers.wire import Frame, FrameKind, WireError

_MODULE: Final = "service.workers"


class ProcessHandle(Protocol):
    """The operating system's side of a child; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Returns the exit status (negative: the signal that ended it), or None while it runs."""
        ...

    def kill(self) -> None: ...

    def wait(self) -> int: ...


@dataclass(frozen=True, slots=True)
class LaunchedWorker:
    """A child process that is ready.

    Attributes:
        process: its handle.
        sock: the front's end of its connection, not yet used by an event loop.
        facts: what it said of its versions, in the order it was given them.
    """

    process: ProcessHandle
    sock: socket.socket
    facts: list[dict[str, Any]]

    def abort(self) -> None:
        """Ends it, whatever it does."""
        self.process.kill()
        self.sock.close()
        self.process.wait()


class WorkerLauncher(Protocol):
    """Starts children for one set of versions."""

    async def launch(self) -> LaunchedWorker:
        """Starts a child and returns it when it is ready.

        Raises:
            ModelError, ProviderUnavailable: it cannot serve what it was told to.
        """
        ...


class ProcessLauncher:
    """Starts real processes that serve given versions; a `WorkerLauncher`."""

    def __init__(self, plan: dict[str, Any], timeout_s: float) -> None:
        """Prepares.

        Args:
            plan: the START message; see `child`.
            timeout_s: a child that is not ready by then is ended.
        """
        self._plan = plan
        self._timeout_s = timeout_s

    async def launch(self) -> LaunchedWorker:
        """Starts a child without holding up the event loop; see `WorkerLauncher.launch`."""
        starting = self._spawn()
        thread = DaemonThread("launch")
        try:
            return await asyncio.wrap_future(thread.submit(starting.ready))
        except BaseException:
            starting.abort()
            raise
        finally:
            thread.close()

    def launch_now(self, count: int) -> list[LaunchedWorker]:
        """Starts so many children at the same time and waits for all of them; blocks.

        The thread that calls this must outlive them: Linux ends them with it.

        Raises:
            ModelError, ProviderUnavailable: one of them failed; the others have been ended.
        """
        starting = [self._spawn() for _ in range(count)]
        try:
            with ThreadPoolExecutor(count, "launch") as pool:
                return list(pool.map(_Starting.ready, starting))
        except BaseException:
            for one in starting:
                one.abort()
            raise

    def _spawn(self) -> _Starting:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_search_path())},
            )
        return _Starting(process, ours, self._plan, time.monotonic() + self._timeout_s)


@dataclass(frozen=True, slots=True)
class _Starting:
    """A child process that loads its versions."""

    process: subprocess.Popen[bytes]
    sock: socket.socket
    plan: dict[str, Any]
    until_s: float

    def ready(self) -> LaunchedWorker:
        """Waits until it is ready; blocks."""
        try:
            self.sock.settimeout(max(0.01, self.until_s - time.monotonic()))
            self.sock.sendall(b"".join(wire.pack_json(FrameKind.START, self.plan)))
            frame = wire.read_frame(self._receive)
        except TimeoutError as error:
            raise WorkerNotStarted("a worker process was not ready in time") from error
        except (OSError, WireError) as error:
            raise WorkerNotStarted(f"a worker process {self._ending()}") from error
        if frame is None:
            raise WorkerNotStarted(f"a worker process {self._ending()}")
        return self._launched(frame)

    def _launched(self, frame: Frame) -> LaunchedWorker:
        if frame.kind is FrameKind.FAILED:
            said = wire.unpack_failed(frame.payload)
            known = isinstance(said, ModelError | ProviderUnavailable)
            bug = "a worker process failed while it was starting; its log says how"
            raise said if known else WorkerNotStarted(bug)
        if frame.kind is not FrameKind.READY:
            raise WorkerNotStarted("a worker process said something else than that it is ready")
        self.sock.setblocking(False)
        return LaunchedWorker(self.process, self.sock, wire.unpack_json(frame.payload)["versions"])

    def _receive(self, size: int) -> bytes | None:
        # Not a byte more than the frame: what follows belongs to the event loop.
        data = b""
        while len(data) < size:
            self.sock.settimeout(max(0.01, self.until_s - time.monotonic()))
            piece = self.sock.recv(size - len(data))
            if not piece:
                return None
            data += piece
        return data

    def abort(self) -> None:
        """Ends it, also while `ready` waits on another thread."""
        self.process.kill()
        self.process.wait()
        self.sock.close()

    def _ending(self) -> str:
        try:
            status = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "broke the protocol"
        how = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
        return f"{how} while it was starting"


def _search_path() -> list[str]:
    return [entry or str(Path.cwd()) for entry in sys.path]

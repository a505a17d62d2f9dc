"""Starts child processes: a fresh interpreter, a socket pair, and the first two messages.

It does not fork, because the front has threads and an event loop.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from contract.errors import GraphMismatch, ModelError, VersionTooCostly
from service.errors import ProviderUnavailable, WorkerNotStarted
from service.models.limits import CHECK_INTERVAL_S, LoadBudget, LoadLimits
from service.settings import without_secrets
from service.system.threads import DaemonThread
from service.workers import wire
from service.workers.__main__ import IMPORT_WHEN_IDLE
from service.workers.priority import ProcessorShare, Yields, run_nicer, run_when_idle
from service.workers.wire import FrameKind, WireError

_MODULE: Final = "service.workers"
_START_S: Final = 60.0


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

    def __init__(
        self, start_message: dict[str, Any], limits: LoadLimits, *, background: bool = False
    ) -> None:
        """In the `background`, children leave the processor to whatever else wants it.

        Those of `launch_now` do so until they end, those of `launch` until everything is imported.
        """
        self._start_message = start_message
        self._background = background
        self._limits = limits  # a child that exceeds them before it is ready is killed

    async def launch(self) -> LaunchedWorker:
        if self._background:
            with suppress(_StarvingError):
                return await self._launch(Yields.WHILE_IMPORTING)
        return await self._launch(Yields.NEVER)

    async def _launch(self, yields: Yields) -> LaunchedWorker:
        # Its versions have been loaded before, so their memory is known. A lane must be replaced also
        # when memory is short, and its worker has a limit of its own.
        limits = replace(self._limits, max_memory_bytes=sys.maxsize)
        starting = self._spawn(limits, yields)
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
        if self._background:
            with suppress(_StarvingError):
                return self._launch_now(count, Yields.ALWAYS)
        return self._launch_now(count, Yields.NICER if self._background else Yields.NEVER)

    def _launch_now(self, count: int, yields: Yields) -> list[LaunchedWorker]:
        starting = [self._spawn(self._limits, yields, siblings=count) for _ in range(count)]
        try:
            futures = []
            for one in starting:
                thread = DaemonThread("launch")
                futures.append(thread.submit(one.wait_ready))
                thread.close()
            wait(futures, return_when=FIRST_EXCEPTION)
            return [future.result() for future in futures if future.done()]
        except BaseException:
            for one in starting:
                one.abort()
            raise

    def _spawn(self, limits: LoadLimits, yields: Yields, siblings: int = 1) -> _StartingWorker:
        ours, theirs = socket.socketpair()
        # The child runs the code of this process, wherever that was imported from.
        search_path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        with theirs:
            command = [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno()), str(os.getpid())]
            if yields is Yields.WHILE_IMPORTING:
                command.append(IMPORT_WHEN_IDLE)
            try:
                process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={**without_secrets(os.environ), "PYTHONPATH": search_path},
                )
            except OSError as error:  # such as at the limit of processes
                ours.close()
                raise WorkerNotStarted(
                    f"a worker process could not be started: {error.strerror}"
                ) from error
        if yields is Yields.ALWAYS and not run_when_idle(process.pid):
            yields = Yields.NICER
        if yields is Yields.NICER:
            run_nicer(process.pid)
        begin = partial(limits.begin, process.pid, siblings=siblings)
        may_starve = yields in (Yields.ALWAYS, Yields.WHILE_IMPORTING)
        share = ProcessorShare(process.pid) if may_starve else None
        return _StartingWorker(process, ours, self._start_message, begin, share)


class _StarvingError(WorkerNotStarted):
    """The child gets hardly any processor time."""


class _StartingWorker:
    """A child process that is loading its versions."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        sock: socket.socket,
        start_message: dict[str, Any],
        begin: Callable[[], LoadBudget],
        share: ProcessorShare | None = None,
    ) -> None:
        self.process = process
        self.sock = sock
        self._start_message = start_message
        self._begin = begin
        self._share = share  # None if it is not to be watched
        # Until the first version; importing everything takes a second, or several on a busy machine.
        self._budget = LoadLimits(_START_S, sys.maxsize).begin(process.pid)
        self._waiting = [f"{name}/{number}" for name, number, *_ in start_message["versions"]]
        self._loading: str | None = None

    def wait_ready(self) -> LaunchedWorker:
        """Sends START and returns when READY has come; blocks.

        Raises:
            ModelError, ProviderUnavailable: it cannot serve its versions, or does not start. If it
                exceeded the limits, it has been killed.
        """
        self.sock.settimeout(CHECK_INTERVAL_S)
        try:
            self._send(b"".join(wire.pack_json(FrameKind.START, self._start_message)))
            frame = self._read()
            while frame is not None and frame.kind is FrameKind.LOADING and self._waiting:
                self._loading = self._waiting.pop(0)
                self._budget = self._begin()
                frame = self._read()
        except (OSError, WireError) as error:
            raise self._ended() from error

        if frame is None:
            raise self._ended()
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

    def _send(self, data: bytes) -> None:
        with memoryview(data) as view:
            sent = 0
            while sent < len(data):
                self._check_limits()
                with suppress(TimeoutError):
                    sent += self.sock.send(view[sent:])

    def _read(self) -> wire.Frame | None:
        return wire.read_frame(self._receive)

    def _receive(self, size: int) -> bytes | None:
        # Not a byte more than the frame: what follows belongs to the event loop.
        data = b""
        while len(data) < size:
            self._check_limits()
            with suppress(TimeoutError):
                piece = self.sock.recv(size - len(data))
                if not piece:
                    return None
                data += piece
        return data

    def _check_limits(self) -> None:
        if self._share is not None and self._share.is_starving():
            self.process.kill()
            raise _StarvingError("a worker process gets hardly any processor time")
        if (reason := self._budget.exceeded()) is None:
            return
        self.process.kill()  # now: it may be taking more memory
        if self._loading is None:
            raise WorkerNotStarted(f"a worker process was not ready within {_START_S:g} s")
        raise VersionTooCostly(f"{self._loading}: {reason}")

    def _ended(self) -> Exception:
        try:
            status = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return WorkerNotStarted("a worker process broke the protocol")
        if status >= 0:
            how = f"exited with status {status}"
        elif self._loading is None:
            how = f"was killed by signal {-status}"
        elif status == -signal.SIGKILL:
            return VersionTooCostly(
                f"{self._loading}: the process that loaded it was killed, as the kernel does when "
                "memory runs out"
            )
        else:
            crash = signal.strsignal(-status) or f"signal {-status}"
            return GraphMismatch(f"{self._loading}: the process that loaded it crashed ({crash})")
        return WorkerNotStarted(f"a worker process {how} while it was starting")

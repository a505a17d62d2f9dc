"""Runs senders as processes and collects what they record."""

from __future__ import annotations

import fcntl
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final, cast

import numpy as np

from convserve.loadtest.sending import child
from convserve.loadtest.sending.plan import Plan
from convserve.loadtest.sending.rows import MAX_STAGES, NONE, Rows, Texts, read_rows
from convserve.loadtest.sending.sender import Counts

_START_LIMIT_S: Final = 30.0
_LEAD_S: Final = 0.05  # from the last "ready" to the start
_PIPE_BYTES: Final = 1 << 20  # so that a sender never waits for its parent to read
# The parent's own module path, because `-m` would look in the working directory first.
_PROGRAM: Final = (
    "import sys; sys.path[:] = {path!r}; from convserve.loadtest.sending.child import main; main()"
)


class SenderFailed(Exception):
    """A sender's process did not start, or ended before its run did."""


@dataclass(slots=True)
class _Process:
    popen: subprocess.Popen[bytes]
    texts: dict[str, list[int]] = field(
        default_factory=lambda: {"answers": [], "ends": [], "stages": []}
    )
    counts: Counts = field(default_factory=Counts)
    ended: bool = False


class Fleet:
    """Senders that share one plan.

    Attributes:
        answers: first classes of one answer each, by the number in the rows.
        ends: (code, status, example) of requests that did not end well, likewise.
        stages: names of the entries of Server-Timing, likewise.
        bodies: answers to good requests by item, if the plan keeps them.
    """

    def __init__(self, plan: Plan, n_processes: int, folder: Path) -> None:
        """Starts the processes; `folder` is for their plans.

        Raises:
            SenderFailed: one did not get ready, for example because the host is unknown.
        """
        self.answers: list[tuple[str, ...]] = []
        self.ends: list[tuple[str, int, str]] = []
        self.stages: list[str] = []
        self.bodies: dict[int, str] = {}
        self._texts = {"answers": Texts(), "ends": Texts(), "stages": Texts()}
        self._frames: queue.SimpleQueue[tuple[_Process, bytes, bytes]] = queue.SimpleQueue()
        self.start_s = 0.0

        parts = [_part(plan, number, n_processes) for number in range(n_processes)]
        self._processes = [self._launch(part, folder) for part in parts if _has_work(part)]
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def begin(self) -> None:
        """Starts sending."""
        self.start_s = time.monotonic() + _LEAD_S
        for process in self._processes:
            if process.popen.stdin is not None:
                with suppress(BrokenPipeError):
                    process.popen.stdin.write(f"{self.start_s}\n".encode())
                    process.popen.stdin.flush()

    def collect(self, wait_s: float) -> Iterator[Rows]:
        """Yields the rows that arrive within `wait_s`; raises SenderFailed."""
        end_s = time.monotonic() + wait_s
        while not self.ended:
            try:
                got = self._frames.get(timeout=max(0.0, end_s - time.monotonic()))
            except queue.Empty:
                return
            rows = self._take(*got)
            if rows is not None:
                yield rows

    @property
    def ended(self) -> bool:
        return all(process.ended for process in self._processes)

    @property
    def counts(self) -> list[Counts]:
        """What each sender said last about itself."""
        return [process.counts for process in self._processes]

    def stop(self) -> None:
        """Ends the run early; what was recorded still comes."""
        for process in self._processes:
            if not process.ended:
                process.popen.terminate()

    def kill(self) -> None:
        for process in self._processes:
            process.popen.kill()
            process.popen.wait()
            for stream in (process.popen.stdin, process.popen.stdout):
                if stream is not None:
                    with suppress(BrokenPipeError):
                        stream.close()

    def _launch(self, part: Plan, folder: Path) -> _Process:
        file = folder / f"plan-{part.part[0]}.json"
        file.write_text(json.dumps(asdict(part)), encoding="utf-8")
        popen = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-c", _PROGRAM.format(path=sys.path), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Out of reach of Ctrl-C, which the parent handles. Linux also shares the cores between
            # sessions first, so a server with many threads delays the sender less.
            start_new_session=True,
        )
        if hasattr(fcntl, "F_SETPIPE_SZ") and popen.stdout is not None:
            with suppress(OSError):
                fcntl.fcntl(popen.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        process = _Process(popen)
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        return process

    def _read(self, process: _Process) -> None:
        stream = cast("IO[bytes]", process.popen.stdout)
        with suppress(OSError, ValueError):  # closed by `kill`
            while head := stream.read(child.FRAME.size):
                kind, length = child.FRAME.unpack(head)
                self._frames.put((process, kind, stream.read(length)))
        self._frames.put((process, child.CLOSED, b""))

    def _wait_until_ready(self) -> None:
        limit_s = time.monotonic() + _START_LIMIT_S
        for _ in self._processes:
            try:
                process, kind, content = self._frames.get(timeout=limit_s - time.monotonic())
            except (queue.Empty, ValueError):
                raise SenderFailed(f"a sender did not start within {_START_LIMIT_S:g} s") from None
            if kind == child.FAILED:
                raise SenderFailed(content.decode("utf-8", "replace"))
            if kind != child.READY:
                raise SenderFailed(f"a sender ended at its start: status {process.popen.wait()}")

    def _take(self, process: _Process, kind: bytes, content: bytes) -> Rows | None:
        if kind == child.ROWS:
            return self._translate(process, read_rows(content))
        if kind == child.TEXTS:
            for name, new in json.loads(content).items():
                self._add_texts(process, name, new)
        elif kind == child.STATE:
            process.counts = Counts(**json.loads(content))
        elif kind == child.ENDED:
            process.ended = True
            self.bodies |= {int(item): body for item, body in json.loads(content).items()}
        elif kind == child.CLOSED and not process.ended:
            raise SenderFailed(f"a sender ended early: status {process.popen.wait()}")
        return None

    def _add_texts(self, process: _Process, name: str, new: list[Any]) -> None:
        ours = getattr(self, name)
        for text in new:
            # An end is known by its code and status; its example may differ.
            value = text if isinstance(text, str) else tuple(text)
            key = value[:2] if name == "ends" else value
            number = self._texts[name].number(key)
            if number == len(ours):
                ours.append(value)
            process.texts[name].append(number)

    def _translate(self, process: _Process, rows: Rows) -> Rows:
        if len(self._processes) == 1:
            return rows
        rows = rows.copy()
        for column, name in (("answer", "answers"), ("end", "ends")):
            numbers = np.array([*process.texts[name], NONE])  # NONE is -1: the last one
            rows[column] = numbers[rows[column]]

        stages = np.full((len(rows), MAX_STAGES), np.nan, np.float32)
        for theirs, ours in enumerate(process.texts["stages"][:MAX_STAGES]):
            if ours < MAX_STAGES:
                stages[:, ours] = rows["stages"][:, theirs]
        rows["stages"] = stages
        return rows


def _part(plan: Plan, number: int, n: int) -> Plan:
    clients = plan.clients // n + (number < plan.clients % n)
    n_requests = plan.n_requests
    if n_requests is not None:
        n_requests = n_requests // n + (number < n_requests % n)
    return replace(plan, part=(number, n), clients=clients, n_requests=n_requests)


def _has_work(part: Plan) -> bool:
    return part.phases is not None or part.clients > 0

"""Sends the requests of a plan and records how each ended.

One thread with non-blocking sockets, because it may share its cores with the server. Latency counts
from the time a request should have been sent, so a server that stalls cannot hide it by slowing its
clients down.
"""

from __future__ import annotations

import errno
import math
import re
import resource
import select
import selectors
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from convserve.loadtest.bodies import BODIES
from convserve.loadtest.sending import rows
from convserve.loadtest.sending.connection import Answer, AnswerTooLarge, Connection, NotOpened
from convserve.loadtest.sending.plan import Plan, Requests, send_times

# Beyond these, requests wait in the sender. Their latency counts from the intended time anyway.
MAX_CONNECTIONS: Final = 4000
_SPARE_FILES: Final = 50  # descriptors for everything else
# A client's pause after a broken connection. Without it, a dead server would keep a core busy.
_PAUSE_S: Final = 0.05
_MAX_WAIT_S: Final = 0.05  # of one poll, so that timeouts and the end of the run are noticed
_FLUSH_S: Final = 0.1
_AFTER_STOP_S: Final = 5.0  # at most, for the answers of a run that was ended early
# A connection that the server closed while it was idle shows that at once. One that ends later has
# lost a request that was in work.
_STALE_S: Final = 0.005
_EXAMPLE_BYTES: Final = 300
_TIMING: Final = re.compile(rb"([\w-]+)[^,]*?;dur=([\d.]+)")
_NO_STAGES: Final = (math.nan,) * rows.MAX_STAGES
_PROBLEM_CODE: Final = re.compile(rb'"code"\s*:\s*"([\w.-]{1,60})"')


@dataclass(slots=True)
class _Request:
    data: memoryview
    item: int
    broken: bool
    intended_s: float
    lag_s: float = 0.0
    sent_s: float = 0.0
    retried: bool = False  # on a new connection, after a kept one turned out to be closed
    ended: bool = False
    connection: Connection | None = None


@dataclass(slots=True)
class Counts:
    """What a sender says about itself at any time."""

    in_flight: int = 0
    n_reconnects: int = 0
    n_sent: int = 0
    n_held: int = 0  # requests that waited because all connections were in use
    cpu_s: float = 0.0
    wall_s: float = 0.0


class Sender:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        """Maps the requests into memory and looks the host up; raises OSError."""
        self._plan = plan
        requests = Requests(Path(plan.requests))
        self._good = [requests.at(place) for place in plan.good]
        self._broken = [requests.at(place) for place in plan.broken]
        self._next = len(self._good) * plan.part[0] // plan.part[1]  # parts start apart
        # Apart from the seed of the arrivals, so that broken pictures are not tied to short gaps.
        self._random = Random(f"broken {plan.seed} {plan.part[0]}")  # noqa: S311 - nothing secret
        self._body = BODIES[plan.body] if plan.body else None

        found = socket.getaddrinfo(plan.target.host, plan.target.port, type=socket.SOCK_STREAM)
        self._addresses = deque((one[0], one[4]) for one in found)
        self._context = _tls(plan) if plan.target.tls else None
        self._max_connections = _allowed_connections()
        self._selector = selectors.DefaultSelector()

        self._idle: list[Connection] = []
        self._all: dict[int, tuple[Connection, _Request | None]] = {}
        self._waiting: deque[_Request] = deque()  # due, but all connections are in use
        self._open: deque[_Request] = deque()  # in the order of their timeouts
        self._free: deque[float] = deque()  # when each idle client of a closed loop sends
        self._stop_s = math.inf
        self._start_s = self._end_s = 0.0

        self.buffer = bytearray()
        self.answers, self.ends, self.stages = rows.Texts(), rows.Texts(), rows.Texts()
        self.bodies: dict[int, str] = {}
        self.counts = Counts()

    def run(self, start_s: float, flush: Callable[[], None] | None = None) -> None:
        """Sends everything and waits for the answers.

        Args:
            start_s: time 0 of the plan, on the monotonic clock.
            flush: called now and then; it may take what is in `buffer` and clear it.
        """
        self._start_s, self._end_s = start_s, start_s + self._plan.seconds
        times = send_times(self._plan)
        next_s = next(times, math.inf)
        if self._plan.phases is None:
            self._free = deque([start_s] * self._plan.clients)

        cpu_s, flushed_s = _cpu_s(), start_s
        while True:
            now_s = time.monotonic()
            while start_s + next_s <= now_s and now_s < self._stop_s:
                self._begin(self._request(start_s + next_s, now_s))
                next_s = next(times, math.inf)
            if now_s >= self._stop_s:
                next_s = math.inf
                self._free.clear()
            self._send_due(now_s)
            self._expire(now_s)

            if flush is not None and now_s - flushed_s >= _FLUSH_S:
                self.counts.cpu_s, self.counts.wall_s = _cpu_s() - cpu_s, now_s - start_s
                flush()
                flushed_s = now_s

            more = next_s < math.inf or self._free or self._waiting or self.counts.in_flight
            if not more or now_s > self._last_s():
                break
            self._wait(start_s + next_s)

        self._give_up()
        self.counts.cpu_s = _cpu_s() - cpu_s
        self.counts.wall_s = time.monotonic() - start_s

    def stop(self) -> None:
        """Ends the run early: sends nothing more and waits a moment for answers."""
        self._stop_s = min(self._stop_s, time.monotonic())

    def _last_s(self) -> float:
        drain_s = self._plan.timeout_s if self._plan.drain_s is None else self._plan.drain_s
        after_stop_s = min(_AFTER_STOP_S, drain_s)
        return min(self._end_s + drain_s, self._stop_s + after_stop_s)

    def _wait(self, next_s: float) -> None:
        due_s = min(next_s, self._free[0]) if self._free else next_s
        wait_s = min(_MAX_WAIT_S, max(0.0, due_s - time.monotonic()))

        # Selectors wait for whole milliseconds, `select` for microseconds.
        if not select.select([self._selector.fileno()], [], [], wait_s)[0]:
            return
        for key, event in self._selector.select(0):
            if key.fd in self._all:  # an earlier event may have closed it
                self._on_event(key.fd, event)

    def _send_due(self, now_s: float) -> None:
        while self._waiting and (self._idle or len(self._all) < self._max_connections):
            request = self._waiting.popleft()
            if not request.ended:
                self._begin(request)

        while self._free and self._free[0] <= now_s:
            at_s = self._free.popleft()
            limit = self._plan.n_requests
            if now_s < self._end_s and (limit is None or self.counts.n_sent < limit):
                self._begin(self._request(at_s, at_s))

    def _request(self, intended_s: float, now_s: float) -> _Request:
        broken = bool(self._broken) and self._random.random() < self._plan.broken_share
        pool = self._broken if broken else self._good
        item = self._next % len(pool)
        self._next += 1
        self.counts.n_sent += 1
        request = _Request(pool[item], item, broken, intended_s, lag_s=now_s - intended_s)
        self._open.append(request)
        self.counts.in_flight += 1
        return request

    def _begin(self, request: _Request) -> None:
        connection = self._idle.pop() if self._idle and not request.retried else None
        if connection is None:
            if len(self._all) >= self._max_connections:
                self._waiting.append(request)
                self.counts.n_held += not request.sent_s
                return
            request.sent_s = time.monotonic()
            family, address = self._addresses[0]
            self._addresses.rotate(-1)
            try:
                connection = Connection(family, address, self._context, self._plan.target.host)
            except OSError as error:
                self._fail(request, error)
                return
            self._selector.register(connection.fd, selectors.EVENT_WRITE)

        request.sent_s = time.monotonic()
        request.connection = connection
        self._all[connection.fd] = (connection, request)
        try:
            connection.send(request.data)
        except OSError as error:
            self._lose(connection, request, error)
            return
        self._watch(connection)

    def _watch(self, connection: Connection) -> None:
        # Writability is of interest only while something is left to send.
        wanted = selectors.EVENT_READ
        if connection.wants_write:
            wanted |= selectors.EVENT_WRITE
        if self._selector.get_key(connection.fd).events != wanted:
            self._selector.modify(connection.fd, wanted)

    def _on_event(self, fd: int, event: int) -> None:
        connection, request = self._all[fd]
        try:
            if event & selectors.EVENT_WRITE:
                connection.write()
            complete = bool(event & selectors.EVENT_READ) and connection.read()
        except (OSError, ValueError) as error:
            self._lose(connection, request, error)
            return

        if not complete:
            self._watch(connection)
        elif request is None:  # an answer that nobody asked for, such as 408 before closing
            self._close(connection)
        else:
            self._on_answer(connection, request)

    def _on_answer(self, connection: Connection, request: _Request) -> None:
        answer = connection.answer
        request.connection = None
        # An answer before the whole request was sent: the rest would be read as the next request.
        if answer.keep_alive and connection.sent:
            self._all[connection.fd] = (connection, None)
            connection.used = True
            self._idle.append(connection)
        else:
            self._close(connection)

        number = end = rows.NONE
        if 200 <= answer.status < 300:
            number, end = self._read(request, answer.body)
        else:
            end = self._end(*_error_code(answer), answer.status)
        stages = self._stages(answer.timing) if answer.timing else _NO_STAGES
        flags = rows.RETRY_AFTER if answer.retry_after else 0
        self._finish(request, answer.status, number, end, stages, flags)

    def _read(self, request: _Request, body: bytes) -> tuple[int, int]:
        """Returns the number of the answer's first classes, or that of what is wrong with it."""
        if self._plan.keep_bodies and not request.broken:
            self.bodies[request.item] = body.decode("utf-8", "replace")
        if self._body is None:
            return rows.NONE, rows.NONE

        try:
            classes = tuple(self._body.first_classes(body))
            if len(classes) != self._plan.n_pictures:
                raise ValueError(f"{len(classes)} answers to {self._plan.n_pictures} pictures")
        except ValueError as error:
            example = f"{error}: {body[:_EXAMPLE_BYTES].decode('utf-8', 'replace')}"
            return rows.NONE, self._end("bad_answer", example, 200)
        return self.answers.number(classes), rows.NONE

    def _end(self, code: str, example: str, status: int) -> int:
        return self.ends.number((code, status), [code, status, example])

    def _stages(self, timing: bytes) -> tuple[float, ...]:
        found = [math.nan] * rows.MAX_STAGES
        for name, duration in _TIMING.findall(timing):
            number = self.stages.number(name.decode("ascii", "replace"))
            if number < rows.MAX_STAGES:
                with suppress(ValueError):
                    found[number] = float(duration)
        return tuple(found)

    def _finish(
        self,
        request: _Request,
        status: int,
        answer: int,
        end: int,
        stages: tuple[float, ...],
        flags: int = 0,
    ) -> None:
        now_s = time.monotonic()
        request.ended = True
        self.counts.in_flight -= 1
        self.buffer += rows.PACKER.pack(
            request.intended_s - self._start_s,
            (request.sent_s or now_s) - self._start_s,
            now_s - self._start_s,
            request.lag_s,
            status,
            flags | (rows.WITH_BROKEN_PICTURE if request.broken else 0),
            request.item,
            answer,
            end,
            *stages,
        )
        if self._plan.phases is None:
            if status == rows.BROKEN:
                self._free.append(now_s + _PAUSE_S)
            else:
                self._free.appendleft(now_s)

    def _fail(self, request: _Request, error: OSError | ValueError) -> None:
        why = getattr(error, "strerror", None) or str(error)
        end = self._end(_failure(error), why, rows.BROKEN)
        self._finish(request, rows.BROKEN, rows.NONE, end, _NO_STAGES)

    def _lose(
        self, connection: Connection, request: _Request | None, error: OSError | ValueError
    ) -> None:
        # A server may close a kept connection at any time between requests. Like any HTTP client,
        # the sender then tries once more on a new connection. Any other loss is a failure.
        stale = (
            connection.used
            and isinstance(error, OSError)
            and not connection.answer.status
            and request is not None
            and time.monotonic() - request.sent_s < _STALE_S
        )
        self._close(connection)
        if request is None or request.ended:
            return
        request.connection = None
        if stale and not request.retried:
            request.retried = True
            self.counts.n_reconnects += 1
            self._begin(request)
        else:
            self._fail(request, error)

    def _close(self, connection: Connection) -> None:
        with suppress(KeyError, ValueError):
            self._selector.unregister(connection.fd)
        self._all.pop(connection.fd, None)
        if connection in self._idle:
            self._idle.remove(connection)
        connection.close()

    def _expire(self, now_s: float) -> None:
        while self._open:
            request = self._open[0]
            if not request.ended:
                if now_s < request.intended_s + self._plan.timeout_s:
                    return
                self._abandon(request, "timeout", f"no answer in {self._plan.timeout_s:g} s")
            self._open.popleft()

    def _give_up(self) -> None:
        early = self._stop_s < math.inf
        code = "interrupted" if early else "unanswered"
        for request in list(self._open):
            if not request.ended:
                self._abandon(request, code, "still open when the run ended")
        for connection, _ in list(self._all.values()):
            self._close(connection)
        self._selector.close()

    def _abandon(self, request: _Request, code: str, why: str) -> None:
        if request.connection is not None:
            self._close(request.connection)
        end = self._end(code, why, rows.UNANSWERED)
        self._finish(request, rows.UNANSWERED, rows.NONE, end, _NO_STAGES)


def _tls(plan: Plan) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not plan.target.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _allowed_connections() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MAX_CONNECTIONS + _SPARE_FILES:
        wanted = MAX_CONNECTIONS + _SPARE_FILES
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(1, min(MAX_CONNECTIONS, soft - _SPARE_FILES))


def _error_code(answer: Answer) -> tuple[str, str]:
    """Returns a code for an answer that is no success, and an example of what it said."""
    example = answer.body[:_EXAMPLE_BYTES].decode("utf-8", "replace")
    if answer.location:
        example = f"see {answer.location[:_EXAMPLE_BYTES].decode('utf-8', 'replace')}"
    if answer.code:
        return answer.code.decode("ascii", "replace"), example
    found = _PROBLEM_CODE.search(answer.body[:2000])
    return found[1].decode() if found else f"http_{answer.status}", example


def _failure(error: OSError | ValueError) -> str:
    if isinstance(error, AnswerTooLarge):
        return "answer_too_large"
    if isinstance(error, ValueError):
        return "not_http"
    if error.errno == errno.ECONNREFUSED:
        return "connection_refused"
    if isinstance(error, NotOpened):
        return "not_connected"
    return "connection_lost"


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

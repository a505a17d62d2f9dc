"""Load generator: sends requests at given times or from a number of clients, and records each.

One thread with non-blocking sockets and epoll, because it shares the cores with the server. It runs
as a process of its own: `python -m benchmarks.loadgen PLAN` reads a `Plan` from a JSON file and
prints an `Outcome` as JSON. Latency counts from the time a request should have been sent, so a
server that stalls cannot hide it by slowing its clients down.
"""

from __future__ import annotations

import json
import resource
import select
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from benchmarks.loadplan import Outcome, Plan, parse_answer, send_times, to_json
from benchmarks.measures import BROKEN, UNANSWERED, Row

# Beyond these, requests wait in the generator. Their latency counts from the intended time anyway.
_MAX_CONNECTIONS: Final = 4000
_SEND_BUFFER_BYTES: Final = 1 << 21  # takes a whole request, so that one `send` is usually enough
_RECEIVE_BYTES: Final = 1 << 16
# A client's pause after a broken connection. Without it, a dead server would keep a core busy.
_PAUSE_S: Final = 0.05
_MAX_WAIT_S: Final = 0.05  # of one poll, so that the end of the run is noticed


@dataclass(slots=True)
class _Request:
    data: bytes
    photo: int
    bad: bool
    intended_s: float
    sent_s: float = 0.0
    retried: bool = False  # on a new connection, after a kept one turned out to be closed


class _Connection:
    """A socket, the rest of a request to send on it, and the answer so far."""

    __slots__ = ("answer", "fd", "request", "sock", "to_send", "used")

    def __init__(self, port: int) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setblocking(False)
        self.fd = self.sock.fileno()
        self.request: _Request | None = None
        self.to_send = memoryview(b"")
        self.answer = bytearray()
        self.used = False


class Generator:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        """Reads the requests into memory and draws the times."""
        self._plan = plan
        self._good = [Path(file).read_bytes() for file in plan.good]
        self._bad = [Path(file).read_bytes() for file in plan.bad]
        # Apart from the seed of the arrivals, so that broken pictures are not tied to short gaps.
        self._random = Random(plan.seed + 1)  # noqa: S311 - nothing secret
        self._times = deque(send_times(plan) if plan.rate_per_s is not None else ())
        self._epoll = select.epoll()

        self._idle: list[_Connection] = []
        self._all: dict[int, _Connection] = {}
        self._waiting: deque[_Request] = deque()  # due, but all connections are in use
        self._free: deque[float] = deque()  # when each idle client of a closed loop sends

        self._start_s = self._end_s = 0.0
        self._n_sent = self._n_in_flight = 0
        self._rows: list[Row] = []
        self._bodies: dict[int, str] = {}

    def run(self) -> Outcome:
        """Sends everything and waits for the answers."""
        before = resource.getrusage(resource.RUSAGE_SELF)
        self._start_s = time.monotonic() + self._plan.lead_s
        self._end_s = self._start_s + self._plan.seconds
        if self._plan.rate_per_s is None:
            self._free = deque([self._start_s] * self._plan.clients)

        while self._work_left():
            self._send_due()
            wait_s = self._until_next_s()
            # `epoll_wait` takes whole milliseconds, `select` takes microseconds.
            if select.select([self._epoll.fileno()], [], [], wait_s)[0]:
                for fd, event in self._epoll.poll(0):
                    if fd in self._all:  # an earlier event may have closed it
                        self._on_event(self._all[fd], event)

        self._give_up()
        after = resource.getrusage(resource.RUSAGE_SELF)
        used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Outcome(self._rows, self._bodies, used_s, time.monotonic() - self._start_s)

    def _work_left(self) -> bool:
        if time.monotonic() > self._end_s + self._plan.drain_s:
            return False
        return bool(self._times or self._free or self._waiting or self._n_in_flight)

    def _until_next_s(self) -> float:
        due_s = [self._start_s + self._times[0]] if self._times else []
        due_s += [self._free[0]] if self._free else []
        return min(_MAX_WAIT_S, max(0.0, min(due_s) - time.monotonic())) if due_s else _MAX_WAIT_S

    def _send_due(self) -> None:
        now_s = time.monotonic()
        while self._times and self._start_s + self._times[0] <= now_s:
            self._begin(self._request(self._start_s + self._times.popleft()))

        while self._waiting and (self._idle or len(self._all) < _MAX_CONNECTIONS):
            self._begin(self._waiting.popleft())

        while self._free and self._free[0] <= now_s:
            at_s = self._free.popleft()
            limit = self._plan.n_requests
            if now_s < self._end_s and (limit is None or self._n_sent < limit):
                self._begin(self._request(at_s))

    def _request(self, intended_s: float) -> _Request:
        bad = bool(self._bad) and self._random.random() < self._plan.bad_share
        pool = self._bad if bad else self._good
        photo = self._n_sent % len(pool)
        self._n_sent += 1
        return _Request(pool[photo], photo, bad, intended_s)

    def _begin(self, request: _Request) -> None:
        connection = self._idle.pop() if self._idle and not request.retried else None
        if connection is None:
            if len(self._all) >= _MAX_CONNECTIONS:
                self._waiting.append(request)
                return
            try:
                connection = _Connection(self._plan.port)
            except OSError:
                # `_finish` takes one request out of those in flight, so it goes in first.
                self._n_in_flight += 1
                request.sent_s = time.monotonic()
                self._finish(request, BROKEN)
                return

            self._all[connection.fd] = connection
            self._epoll.register(connection.fd, select.EPOLLIN)

        request.sent_s = time.monotonic()
        self._n_in_flight += 1
        connection.request = request
        connection.to_send = memoryview(request.data)
        connection.answer.clear()
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        try:
            sent = connection.sock.send(connection.to_send)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose(connection)
            return
        connection.to_send = connection.to_send[sent:]
        # Writability is of interest only while something is left to send.
        events = select.EPOLLIN | (select.EPOLLOUT if connection.to_send else 0)
        self._epoll.modify(connection.fd, events)

    def _on_event(self, connection: _Connection, event: int) -> None:
        # Errors and hang-ups come as events of their own; `recv` then tells which it was.
        if event & ~select.EPOLLOUT:
            try:
                received = connection.sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                received = b""

            if not received:
                self._lose(connection)
                return

            connection.answer += received
            self._on_answer(connection)
        elif connection.to_send:
            self._send(connection)

    def _on_answer(self, connection: _Connection) -> None:
        answer = parse_answer(connection.answer)
        request = connection.request
        if answer is None or request is None:
            return

        status, head, body = answer
        if self._plan.keep_bodies and not request.bad:
            self._bodies[request.photo] = body.decode("utf-8", "replace")

        connection.request = None
        # An answer before the whole request was sent: the rest would be read as the next request.
        if b"\r\nconnection: close" in head or connection.to_send:
            self._close(connection)
        else:
            connection.used = True
            self._idle.append(connection)

        self._finish(request, status, retry_after=b"\r\nretry-after:" in head)

    def _finish(self, request: _Request, status: int, *, retry_after: bool = False) -> None:
        now_s = time.monotonic()
        self._n_in_flight -= 1
        times = (request.intended_s, request.sent_s, now_s)
        intended_s, sent_s, done_s = (one - self._start_s for one in times)
        self._rows.append(Row(request.bad, intended_s, sent_s, done_s, status, retry_after))
        if self._plan.rate_per_s is None:
            self._free.append(now_s + (_PAUSE_S if status == BROKEN else 0.0))

    def _lose(self, connection: _Connection) -> None:
        # A server may close a kept connection at any time between requests. Like any HTTP client,
        # the generator then tries once more on a new connection. Any other loss is a failure.
        request = connection.request
        stale = connection.used and not connection.answer
        self._close(connection)
        if request is None:
            return
        if stale and not request.retried:
            request.retried = True
            self._n_in_flight -= 1
            self._begin(request)
        else:
            self._finish(request, BROKEN)

    def _close(self, connection: _Connection) -> None:
        with suppress(OSError):
            self._epoll.unregister(connection.fd)
        self._all.pop(connection.fd, None)
        if connection in self._idle:
            self._idle.remove(connection)
        connection.sock.close()

    def _give_up(self) -> None:
        for connection in list(self._all.values()):
            request = connection.request
            self._close(connection)
            if request is not None:
                self._finish(request, UNANSWERED)
        for request in self._waiting:
            self._n_in_flight += 1
            request.sent_s = time.monotonic()
            self._finish(request, UNANSWERED)


def main() -> None:
    plan = Plan(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    json.dump(to_json(Generator(plan).run()), sys.stdout)


if __name__ == "__main__":
    main()

"""Load shedding: refuses requests cheaply while the service has no room for them.

A refusal on the way through ASGI costs several times what the rest of the request does, and in a flood
the refusals would take that from the answers. So `LoadShedder` refuses in the protocol, as soon as a
request's head is complete, and counts and logs what the edge middleware would have. A few refusals a
second still go through ASGI, so that the log has examples in full.

`PacedRefusals` slows down clients that send again as soon as they are refused.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, Protocol

from starlette.types import Receive

from service.errors import Overloaded
from service.http.edge import NO_SNIFFING, NOT_KEPT, RequestMetrics, request_id_of_headers
from service.http.problems import problem_response
from service.http.scope import client_of
from service.http.tracing import trace_of
from service.http.turns import FairTurns
from service.system.pacing import Allowance

log = logging.getLogger("service.access")

_IN_FULL_PER_S: Final = 10  # refusals that go through ASGI
_COUNT_EVERY_S: Final = 0.1
_LOG_EVERY_S: Final = 1.0
_LOGGED_CLIENTS: Final = 10
_MAX_COUNTED_CLIENTS: Final = 10_000

_AT_ONCE: Final = 16  # refusals in one turn of the event loop
_BURST: Final = 100
_PER_S: Final = 1000
# Of a body: what is part of every refusal, and what costs as much as one more.
_INCLUDED_BYTES: Final = 131_072
_BYTES_PER_REFUSAL: Final = 65_536
_MAX_COST: Final = 300.0  # a body of 20 MB; a client may announce any length, and never send it
_MAX_WAITING: Final = 256
_UNPACED_S: Final = 30.0


class RefusalMetrics(RequestMetrics, Protocol):
    """Counts requests that are refused without ASGI."""

    def count_refusals(self, route: str, code: str, reason: str, seconds: Sequence[float]) -> None:
        """Counts requests that were refused with 503, and the seconds that each took."""
        ...


class PacedRefusals:
    """Lets a client that sends on while it is refused wait for its refusals.

    A refused request costs the event loop its parsing, its answer and the bytes of its body. A client with
    hundreds of connections that all send again at once would take a core for that. So refusals go out at a
    bounded rate, in turn by client.

    That slows down a client that waits for its answers before it sends more. One that does not would only
    open more connections. So when too many refusals wait, the next ones go out at once for a while.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives monotonic seconds."""
        self._turns = FairTurns(_AT_ONCE, Allowance(_BURST, _PER_S, clock))
        self._clock = clock
        self._unpaced_until_s = -math.inf

    async def wait(self, client: str, scope: Any, receive: Receive) -> None:
        """Returns when the refusal of a request may be sent.

        Raises:
            ClientDisconnect: the client disconnected first.
        """
        if not self._unpaced():
            await self._turns.wait(client, scope, receive, _cost(scope))

    def call(
        self, client: str, scope: Any, send: Callable[[], object], is_gone: Callable[[], bool]
    ) -> None:
        """Calls `send` when the refusal of a request may be sent, unless `is_gone` returns True by then."""
        if self._unpaced():
            send()
        else:
            self._turns.call(client, send, is_gone, _cost(scope))

    def _unpaced(self) -> bool:
        now_s = self._clock()
        if self._turns.n_waiting >= _MAX_WAITING:
            self._unpaced_until_s = now_s + _UNPACED_S
        return now_s < self._unpaced_until_s


def _cost(scope: Any) -> float:
    for name, value in scope["headers"]:
        if name == b"content-length":
            n_bytes = int(value) if value.isdigit() else 0
            return min(_MAX_COST, 1.0 + max(0, n_bytes - _INCLUDED_BYTES) / _BYTES_PER_REFUSAL)
    return 1.0


class Refusal:
    """The refusal of one request, which the protocol sends.

    Attributes:
        keep_alive: the connection stays open; set by the protocol.
    """

    __slots__ = ("_client", "_error", "_route", "_scope", "_shedder", "_started_s", "keep_alive")

    def __init__(
        self, shedder: LoadShedder, scope: Any, client: str, route: str, error: Overloaded
    ) -> None:
        self._shedder = shedder
        self._scope = scope
        self._client = client
        self._route = route
        self._error = error
        self._started_s = time.monotonic()
        self.keep_alive = True

    def when_due(self, send: Callable[[], object], is_gone: Callable[[], bool]) -> None:
        """Calls `send` now or later, unless `is_gone` returns True by then."""
        self._shedder.refusals.call(self._client, self._scope, send, is_gone)

    def abandon(self) -> None:
        """Counts the request of a client that left before its refusal was sent."""
        self._shedder.count_gone(self._route, time.monotonic() - self._started_s)

    def response(self, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Counts the refusal and returns the whole response, as it is sent."""
        seconds = time.monotonic() - self._started_s
        self._shedder.count(self._client, self._route, self._error, seconds)

        headers = self._scope["headers"]
        request_id = request_id_of_headers(headers).encode()
        error = self._error
        head, before, after = _parts(str(error), error.retry_after_s, len(request_id))
        fields = [b"%s: %s\r\n" % field for field in default_headers]
        fields.append(
            b"x-request-id: %s\r\nserver-timing: total;dur=%.2f\r\n" % (request_id, 1e3 * seconds)
        )
        if trace := trace_of(headers):
            fields.append(b"%s: %s\r\n" % trace.header())
        if not self.keep_alive:
            fields.append(b"connection: close\r\n")
        return b"".join((head, *fields, b"\r\n", before, request_id, after))


@lru_cache(maxsize=256)
def _parts(detail: str, retry_after_s: int, id_length: int) -> tuple[bytes, bytes, bytes]:
    """Returns the head without the fields of one request, and the body before and after its id."""
    request_id = "-" * id_length
    response = problem_response(Overloaded(detail, retry_after_s), request_id)
    lines = [b"%s: %s\r\n" % field for field in (*response.raw_headers, NO_SNIFFING, NOT_KEPT)]
    before, _, after = bytes(response.body).rpartition(request_id.encode())
    status = HTTPStatus(response.status_code)
    first = f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    return b"".join((first, *lines)), before, after


class LoadShedder:
    """Decides which requests are refused before ASGI; used on the event loop only.

    Args:
        route_of: returns the path template of a request that would take a place, None for others.
        refusal_of: returns why a client's request would be refused now, if it would be.
        metrics: counts the refusals.
        refusals: when they are sent.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        route_of: Callable[[Any], str | None],
        refusal_of: Callable[[str], Overloaded | None],
        metrics: RefusalMetrics,
        refusals: PacedRefusals,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.refusals = refusals
        self._route_of = route_of
        self._refusal_of = refusal_of
        self._metrics = metrics
        self._in_full = Allowance(_IN_FULL_PER_S, _IN_FULL_PER_S, clock)
        self._sent: list[tuple[str, str, Overloaded, float]] = []  # and not counted yet
        self._unlogged: Counter[str] = Counter()  # by client
        self._log_at_s = -math.inf
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    def refuse(self, scope: Any) -> Refusal | None:
        """Returns the refusal of a request, None if it should go on."""
        route = self._route_of(scope)
        if route is None:
            return None
        client = client_of(scope)
        error = self._refusal_of(client)
        if error is None or self._in_full.take():
            return None
        return Refusal(self, scope, client, route, error)

    def count(self, client: str, route: str, error: Overloaded, seconds: float) -> None:
        """Counts a refusal that is sent, within 0.1 s."""
        # Many at a time, because that takes a third of the time.
        self._sent.append((client, route, error, seconds))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_COUNT_EVERY_S, self.report)

    def count_gone(self, route: str, seconds: float) -> None:
        """Counts a request whose client left."""
        self._metrics.count_request(route, 499, seconds)

    def report(self, *, last: bool = False) -> None:
        """Counts what was sent, and logs it once a second.

        Args:
            last: logs it now.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        sent, self._sent = self._sent, []
        seconds_of: dict[tuple[str, str, str], list[float]] = {}
        for client, route, error, seconds in sent:
            seconds_of.setdefault((route, error.code, error.reason), []).append(seconds)
            counted = client in self._unlogged or len(self._unlogged) < _MAX_COUNTED_CLIENTS
            self._unlogged[client if counted else "others"] += 1

        for (route, code, reason), all_seconds in seconds_of.items():
            self._metrics.count_refusals(route, code, reason, all_seconds)

        now_s = self._clock()
        counts = self._unlogged
        if counts and (last or now_s >= self._log_at_s):
            self._log_at_s = now_s + _LOG_EVERY_S
            self._unlogged = Counter()
            fields = {
                "count": counts.total(),
                "n_clients": len(counts),
                "clients": dict(counts.most_common(_LOGGED_CLIENTS)),
            }
            log.info("requests refused", extra=fields)
        elif counts:
            self._timer = asyncio.get_running_loop().call_later(_COUNT_EVERY_S, self.report)

"""The outermost layer: request id, headers on every answer, every error's answer, one log line, metrics."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Iterable
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineExceeded, Draining, Unavailable
from service.http.problems import FORESEEN, problem_response
from service.http.scope import begin, route_of
from service.system.metrics import Metrics

log = logging.getLogger("service.access")

_ACCEPTABLE_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_ids = random.Random()  # noqa: S311 - tells requests apart, keeps no secret; seeded by the system
_QUIET: Final = frozenset({"/livez", "/readyz", "/metrics"})
_ON_EVERY_ANSWER: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)


class EdgeMiddleware:
    """Wraps an application for HTTP; answers every exception that it raises as a problem."""

    def __init__(self, app: ASGIApp, metrics: Metrics, closing: Callable[[], bool]) -> None:
        """Wraps.

        Args:
            app: what is wrapped.
            metrics: where requests are counted.
            closing: whether clients should take their next request elsewhere.
        """
        self._app = app
        self._metrics = metrics
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_s = time.monotonic()
        request_id = _request_id(scope["headers"])
        begin(scope, request_id, started_s)
        answer = _Answer(send, request_id, started_s, closing=self._closing)
        try:
            await self._app(scope, receive, answer.send)
        except ClientDisconnect:
            log.debug("client disconnected", extra={"request_id": request_id})
            answer.status = 499  # what nginx logs for the same; nobody is left to receive it
        except asyncio.CancelledError:
            # The server gives up on what outlives the grace period.
            await answer.fail(Draining("the service stopped"), scope, receive, linger=False)
        except FORESEEN as error:
            self._count_refusal(error)
            await answer.fail(error, scope, receive)
        except Exception as error:
            log.exception("unhandled error", extra={"request_id": request_id})
            await answer.fail(error, scope, receive)
        finally:
            self._record(scope, request_id, answer.status, time.monotonic() - started_s)

    def _count_refusal(self, error: Exception) -> None:
        if isinstance(error, Unavailable):
            self._metrics.refused.labels(error.code, error.reason).inc()
        elif isinstance(error, DeadlineExceeded):
            self._metrics.refused.labels(error.code, "deadline").inc()

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = route_of(scope)
        self._metrics.requests(route, status).inc()
        self._metrics.request_seconds(route).observe(seconds)
        level = logging.DEBUG if route in _QUIET and status < 400 else logging.INFO
        if not log.isEnabledFor(level):
            return
        log.log(
            level,
            "request",
            extra={
                "request_id": request_id,
                "method": scope["method"][:16],
                "route": route,
                "status": status,
                "duration_ms": round(seconds * 1e3, 2),
                "client": (scope.get("client") or ("-",))[0],
            },
        )


class _Answer:
    """The answer to one request, and how far it has come."""

    __slots__ = ("_closing", "_complete", "_request_id", "_send", "_started_s", "status")

    def __init__(
        self, send: Send, request_id: str, started_s: float, *, closing: Callable[[], bool]
    ) -> None:
        self.status = 0
        self._complete = False
        self._send = send
        self._request_id = request_id
        self._started_s = started_s
        self._closing = closing

    async def send(self, message: Message) -> None:
        """Passes a message on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": self._headers(message.get("headers", ()))}
        elif not message.get("more_body", False):
            self._complete = True
        await self._send(message)

    def _headers(self, given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        headers = [*given, (b"x-request-id", self._request_id.encode()), *_ON_EVERY_ANSWER]
        names = dict(headers)
        if b"server-timing" not in names:
            total_ms = 1e3 * (time.monotonic() - self._started_s)
            headers.append((b"server-timing", b"total;dur=%.2f" % total_ms))
        if self._closing() and b"connection" not in names:
            headers.append((b"connection", b"close"))
        return headers

    async def fail(
        self, error: Exception, scope: Scope, receive: Receive, *, linger: bool = True
    ) -> None:
        """Answers with the problem, unless an answer is under way, which can only be cut."""
        if self._complete:
            return
        if self.status:
            raise error
        response = problem_response(error, self._request_id, linger=linger)
        await response(scope, receive, self.send)


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Returns the client's id if it is harmless, a new one otherwise."""
    for name, value in headers:
        if name == b"x-request-id" and _ACCEPTABLE_ID.fullmatch(value):
            return value.decode("ascii")
    return f"{_ids.getrandbits(64):016x}"

"""The outermost layer: request id, headers on every answer, the last catch, one log line, metrics."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contract.errors import ContractError
from service.api.express import Express
from service.api.parts import REQUEST_ID
from service.errors import Draining, ServiceError
from service.http.deadlines import STARTED
from service.http.problems import count_refusal, problem_response
from service.system.metrics import Metrics

log = logging.getLogger("service.access")

_ACCEPTABLE_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_TEMPLATE: Final = "convserve.route"
_ids = random.Random()  # noqa: S311 - tells requests apart, keeps no secret; seeded by the system
_UNMATCHED: Final = "unmatched"
_QUIET: Final = frozenset({"/livez", "/readyz", "/metrics"})
_ON_EVERY_ANSWER: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)


class Edge:
    """Wraps an application; answers every exception that gets this far as a problem."""

    def __init__(
        self, app: ASGIApp, express: Express, metrics: Metrics, closing: Callable[[], bool]
    ) -> None:
        """Wraps.

        Args:
            app: what is wrapped.
            express: takes requests past it.
            metrics: where requests are counted.
            closing: whether clients should take their next request elsewhere.
        """
        self._app = app
        self._express = express
        self._metrics = metrics
        self._closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, closing=self._closing)
        scope[REQUEST_ID] = exchange.request_id
        started_s = scope[STARTED] = time.monotonic()
        found = self._express.find(scope)
        try:
            if found is None:
                await self._app(scope, receive, exchange.send)
            else:
                scope[_TEMPLATE], handle = found
                response = await handle(Request(scope, receive), exchange.request_id)
                await response(scope, receive, exchange.send)
        except ClientDisconnect:
            log.debug("client disconnected", extra={"request_id": exchange.request_id})
            exchange.status = 499  # what nginx logs for the same; nobody is left to receive it
        except asyncio.CancelledError:
            # The server gives up on what outlives the grace period.
            await exchange.fail(Draining("the service stopped"), linger=False)
        except (ServiceError, ContractError) as error:
            count_refusal(self._metrics, error)
            await exchange.fail(error)
        except Exception as error:
            log.exception("unhandled error", extra={"request_id": exchange.request_id})
            await exchange.fail(error)
        finally:
            self._record(exchange, time.monotonic() - started_s)

    def _record(self, exchange: _Exchange, seconds: float) -> None:
        scope, status = exchange.scope, exchange.status
        route = scope.get(_TEMPLATE) or _route_template(scope)
        self._metrics.requests(route, status).inc()
        self._metrics.request_seconds(route).observe(seconds)
        level = logging.DEBUG if route in _QUIET and status < 400 else logging.INFO
        if not log.isEnabledFor(level):
            return
        log.log(
            level,
            "request",
            extra={
                "request_id": exchange.request_id,
                "method": scope["method"][:16],
                "route": route,
                "status": status,
                "duration_ms": round(seconds * 1e3, 2),
                "client": (scope.get("client") or ("-",))[0],
            },
        )


class _Exchange:
    """One request and how far its answer has come."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, closing: Callable[[], bool]
    ) -> None:
        self.scope = scope
        self.request_id = _request_id(scope["headers"])
        self.status = 0
        self._complete = False
        self._receive = receive
        self._send = send
        self._closing = closing

    async def send(self, message: Message) -> None:
        """Passes a message on, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
            headers.extend(_ON_EVERY_ANSWER)
            if all(name != b"server-timing" for name, _ in headers):
                total_ms = 1e3 * (time.monotonic() - self.scope[STARTED])
                headers.append((b"server-timing", b"total;dur=%.2f" % total_ms))
            if self._closing() and all(name != b"connection" for name, _ in headers):
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        elif not message.get("more_body", False):
            self._complete = True
        await self._send(message)

    async def fail(self, error: Exception, *, linger: bool = True) -> None:
        """Answers with the problem, unless an answer is under way, which can only be cut."""
        if self._complete:
            return
        if self.status:
            raise error
        response = problem_response(error, self.request_id)
        answer = response if linger else partial(Response.__call__, response)
        await answer(self.scope, self._receive, self.send)


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Returns the client's id if it is harmless, a new one otherwise."""
    for name, value in headers:
        if name == b"x-request-id" and _ACCEPTABLE_ID.fullmatch(value):
            return value.decode("ascii")
    return f"{_ids.getrandbits(64):016x}"


def _route_template(scope: Scope) -> str:
    """Returns the path template that matched, so that clients cannot create metric series."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else _UNMATCHED

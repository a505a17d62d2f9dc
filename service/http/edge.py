"""The outermost middleware: request ids, common headers, error responses, access log, metrics."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DeadlineExceeded, Draining, Overloaded, Unavailable
from service.http.problems import EXPECTED_ERRORS, problem_response, public_code_of
from service.http.scope import route_of, set_request_info
from service.http.tracing import Trace, trace_of
from service.system.logs import RequestRecord

log = logging.getLogger("service.access")

# A client's id goes into logs and headers, so it is limited to characters that are safe in both.
_SAFE_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_ids = random.Random()  # noqa: S311 - ids tell requests apart, they are not secret
# Logged at debug level; their errors are what they are there to say.
QUIET_ROUTES: Final = frozenset({"/livez", "/readyz", "/metrics"})
NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")
NOT_KEPT: Final = (b"cache-control", b"no-store")


class RequestMetrics(Protocol):
    """Counts the requests to one port."""

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Counts a request; `status` is 499 if the client left."""
        ...

    def count_error(self, code: str, refusal: str | None) -> None:
        """Counts an error response; `refusal` is the limit that was reached, if one was."""
        ...


class EdgeMiddleware:
    """Wraps an ASGI application and answers every exception it raises with a problem document.

    Args:
        app: the application.
        metrics: counts requests and their errors.
        draining: returns whether clients should send their next request to another instance.
    """

    def __init__(self, app: ASGIApp, metrics: RequestMetrics, draining: Callable[[], bool]) -> None:
        self._app = app
        self._metrics = metrics
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started_s = time.monotonic()
        request_id = request_id_of_headers(scope["headers"])
        set_request_info(scope, request_id, started_s)
        method = scope["method"]
        if method == "HEAD":
            # The application answers GET. The server keeps the original scope and sends no body.
            scope = {**scope, "method": "GET"}
        trace = trace_of(scope["headers"])
        response = _Response(send, request_id, started_s, trace, draining=self._draining)
        ids = {"request_id": request_id, **(trace.fields() if trace else {})}

        try:
            await self._app(scope, receive, response.send)
        except ClientDisconnect:
            log.debug("client disconnected", extra=ids)
            response.status = 499  # nginx's status for this; it is only counted, never sent
        except asyncio.CancelledError:
            # The server cancels requests that are still running when the grace period ends.
            stopped = Draining("the service stopped before the request was finished")
            self._count_error(scope, stopped)
            await response.fail(stopped, scope, receive, linger=False)
        except EXPECTED_ERRORS as error:
            self._count_error(scope, error)
            await response.fail(error, scope, receive)
        except MemoryError as error:
            error.__traceback__ = None  # its frames hold what took the memory
            log.warning("not enough memory for a request", extra={"request_id": request_id})
            refused = Overloaded("not enough memory for this request now", reason="memory")
            self._count_error(scope, refused)
            await response.fail(refused, scope, receive)
        except Exception as error:
            log.exception("unhandled error", extra=ids)
            self._count_error(scope, error)
            await response.fail(error, scope, receive)
        finally:
            self._record(scope, method, ids, response.status, time.monotonic() - started_s)

    def _count_error(self, scope: Scope, error: Exception) -> None:
        if route_of(scope) in QUIET_ROUTES:
            return
        refusal = None
        if isinstance(error, Unavailable):
            refusal = error.reason
        elif isinstance(error, DeadlineExceeded):
            refusal = "deadline"
        self._metrics.count_error(public_code_of(error), refusal)

    def _record(
        self, scope: Scope, method: str, ids: dict[str, str], status: int, seconds: float
    ) -> None:
        route = route_of(scope)
        self._metrics.count_request(route, status, seconds)

        level = logging.DEBUG if route in QUIET_ROUTES and status < 400 else logging.INFO
        if not log.isEnabledFor(level):  # building the extra fields costs more than this check
            return
        fields = {
            **ids,
            "method": method[:16],  # the client may send a method of any length
            "route": route,
            "status": status,
            "duration_ms": round(seconds * 1e3, 2),
            "client": (scope.get("client") or ("-",))[0],
        }
        log.handle(RequestRecord(log.name, level, fields))


class _Response:
    """The response to one request: adds the common headers and knows how much has been sent."""

    __slots__ = ("_complete", "_draining", "_request_id", "_send", "_started_s", "_trace", "status")

    def __init__(
        self,
        send: Send,
        request_id: str,
        started_s: float,
        trace: Trace | None = None,
        *,
        draining: Callable[[], bool],
    ) -> None:
        self.status = 0  # until the response has started
        self._complete = False
        self._send = send
        self._request_id = request_id
        self._started_s = started_s
        self._trace = trace
        self._draining = draining

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": self._headers(message.get("headers", ()))}
        elif not message.get("more_body", False):
            self._complete = True
        await self._send(message)

    def _headers(self, given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        headers = [*given, (b"x-request-id", self._request_id.encode()), NO_SNIFFING]
        if self._trace is not None:
            headers.append(self._trace.header())
        names = dict(headers)
        if b"cache-control" not in names:
            headers.append(NOT_KEPT)
        if b"server-timing" not in names:
            total_ms = 1e3 * (time.monotonic() - self._started_s)
            headers.append((b"server-timing", b"total;dur=%.2f" % total_ms))
        if self._draining() and b"connection" not in names:
            headers.append((b"connection", b"close"))
        return headers

    async def fail(
        self, error: Exception, scope: Scope, receive: Receive, *, linger: bool = True
    ) -> None:
        if self._complete:
            return
        if self.status:
            # The response has begun. Raising makes the server cut the connection, so that the client
            # does not take half a body for the whole, or send a plain 500 if nothing is out yet.
            raise error
        response = problem_response(error, self._request_id, linger=linger)
        await response(scope, receive, self.send)


def request_id_of_headers(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Returns the client's id of a request if it is safe, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _SAFE_ID.fullmatch(value):
            return value.decode("ascii")
    return f"{_ids.getrandbits(64):016x}"

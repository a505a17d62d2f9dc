"""Cross-origin requests of browsers (CORS), for an exact list of origins and without credentials."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PREFLIGHT_STATUS: Final = 204
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Allow-Headers": (
        "Content-Type, If-None-Match, Traceparent, X-Request-Id, X-Request-Timeout-Ms"
    ),
    "Access-Control-Max-Age": "600",
}
_EXPOSED: Final = b"ETag, Retry-After, Server-Timing, Traceparent, X-Request-Id"


class AllowedOrigins:
    """The origins whose pages may read answers; answers to others have no CORS headers.

    Args:
        origins: like `https://example.org`, separated by commas; the setting has checked them.
    """

    def __init__(self, origins: str) -> None:
        self._origins = frozenset(one.strip().encode() for one in origins.split(",") if one.strip())

    def __bool__(self) -> bool:
        return bool(self._origins)

    def allowed(self, scope: Scope) -> bytes | None:
        """Returns the origin of a request if it is on the list, else None."""
        found = [value for name, value in scope["headers"] if name == b"origin"]
        return found[0] if len(found) == 1 and found[0] in self._origins else None

    def sender(self, scope: Scope, send: Send) -> Send:
        """Returns a `send` that adds the headers to the response, also to an error."""
        added = [(b"vary", b"Origin")]
        if origin := self.allowed(scope):
            added.append((b"access-control-allow-origin", origin))
            added.append((b"access-control-expose-headers", _EXPOSED))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        return send_with_headers

    def preflights(self, app: ASGIApp) -> ASGIApp:
        """Returns an application that answers the preflights of allowed origins before `app`."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            if self._is_preflight(scope):
                await Response(status_code=PREFLIGHT_STATUS, headers=_PREFLIGHT)(
                    scope, receive, send
                )
            else:
                await app(scope, receive, send)

        return answer

    def _is_preflight(self, scope: Any) -> bool:
        return (
            scope["method"] == "OPTIONS"
            and self.allowed(scope) is not None
            and any(name == b"access-control-request-method" for name, _ in scope["headers"])
        )

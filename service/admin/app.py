"""The application behind the admin port.

It is separate from the application of the public port, and reaches the running service only through
`AdminActions`. It has the same edge, so request ids, error documents and log lines are the same.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from service.admin.actions import AdminPort
from service.admin.editor import RepositoryEditor, Wanted
from service.admin.polling import NextPoll
from service.admin.requests import NoBody, WaitOptions, parse, read_json, requested_by
from service.admin.token import AdminToken
from service.admin.verbs import DEFAULT, MODEL_VERBS, Verb
from service.errors import Unauthorized
from service.http.edge import EdgeMiddleware
from service.system.metrics import Metrics
from service.system.threads import DaemonThread

log = logging.getLogger(__name__)

_BODY_TIMEOUT_S: Final = 10.0
_WARN_EVERY_S: Final = 10.0


def create_admin_app(port: AdminPort) -> ASGIApp:
    """Returns the ASGI application. Its requests are counted in convserve_admin_requests_total only."""
    thread = DaemonThread("admin")
    handlers = _Handlers(port, RepositoryEditor(port.actions, port.changes, thread))
    guarded = _TokenRequired(handlers.router(), port.token, thread)
    return EdgeMiddleware(guarded, _AdminMetrics(port.metrics), port.draining)


class _AdminMetrics:
    """Keeps the admin port out of the public port's traffic and errors."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def count_request(self, route: str, status: int, seconds: float) -> None:  # noqa: ARG002
        self._metrics.count_admin_request(status)

    def count_error(self, code: str, refusal: str | None) -> None:
        pass  # `count_request` counts it by its status


class _TokenRequired:
    """Passes on requests with the right token, before anything else of them is looked at."""

    def __init__(self, app: ASGIApp, token: AdminToken, thread: DaemonThread) -> None:
        self._app = app
        self._token = token
        self._thread = thread
        self._warn_at_s = 0.0
        self._unreported = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await self._authorized(scope):
            self._warn(scope)
            raise Unauthorized("send the admin token as the header Authorization: Bearer <token>")
        scope["app"] = self  # makes Starlette's router raise its errors, for the edge to answer
        await self._app(scope, receive, send)

    async def _authorized(self, scope: Scope) -> bool:
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(values) != 1:
            return False
        scheme, _, presented = values[0].partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        matches = partial(self._token.matches, presented.strip())
        return await asyncio.wrap_future(self._thread.submit(matches))

    def _warn(self, scope: Scope) -> None:
        self._unreported += 1
        if time.monotonic() < self._warn_at_s:
            return
        client = (scope.get("client") or ("-",))[0]
        log.warning(
            "admin request without a valid token",
            extra={"client": client, "requests": self._unreported},
        )
        self._unreported = 0
        self._warn_at_s = time.monotonic() + _WARN_EVERY_S


class _Handlers:
    def __init__(self, port: AdminPort, editor: RepositoryEditor) -> None:
        self._actions = port.actions
        self._changes = port.changes
        self._editor = editor
        self._next_poll = NextPoll(port.actions.reload)
        self._poll_timeout_s = port.poll_timeout_s

    def router(self) -> Router:
        changes: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
            (f"/v1/admin/models/{{name}}/{name}", partial(self._change_model, name, verb))
            for name, verb in MODEL_VERBS.items()
        ]
        return Router(
            [
                Route("/v1/admin/models", self._show_models, methods=["GET"]),
                Route("/v1/admin/changes", self._show_changes, methods=["GET"]),
                Route("/v1/admin/reload", self._reload, methods=["POST"]),
                Route("/v1/admin/default", self._change_default, methods=["POST"]),
                *(Route(path, endpoint, methods=["POST"]) for path, endpoint in changes),
            ],
            redirect_slashes=False,
        )

    async def _show_models(self, request: Request) -> Response:
        parse(NoBody, dict(request.query_params))
        return JSONResponse(self._actions.state().document())

    async def _show_changes(self, request: Request) -> Response:
        parse(NoBody, dict(request.query_params))
        return JSONResponse({"changes": self._changes.entries()})

    async def _reload(self, request: Request) -> Response:
        options = parse(WaitOptions, dict(request.query_params))
        parse(NoBody, await read_json(request, _BODY_TIMEOUT_S))
        return await self._served(options.wait)

    async def _change_default(self, request: Request) -> Response:
        return await self._change(request, "default", DEFAULT, lambda body: str(body.model))

    async def _change_model(self, name: str, verb: Verb, request: Request) -> Response:
        return await self._change(request, name, verb, lambda _: str(request.path_params["name"]))

    async def _change(
        self, request: Request, name: str, verb: Verb, model_of: Callable[[Any], str]
    ) -> Response:
        options = parse(WaitOptions, dict(request.query_params))
        body = parse(verb.body, await read_json(request, _BODY_TIMEOUT_S))
        wanted = Wanted(requested_by(request), name, verb, model_of(body), body)
        change = await self._editor.apply(wanted)
        return await self._served(options.wait, change=change)

    async def _served(self, wait: bool, **members: Any) -> Response:
        """Answers with what is served after the next poll, or 202 if that poll is still to end."""
        poll = self._next_poll.begin()
        if wait:
            await asyncio.wait((poll,), timeout=self._poll_timeout_s)
        if poll.done():
            poll.result()
        document = {**members, "served": self._actions.state().document()}
        return JSONResponse(document, 200 if poll.done() else 202)

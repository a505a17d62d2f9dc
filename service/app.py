"""The ASGI application: routes, middleware and what the protocol asks, around the running service.

`create_app` loads, verifies and warms up every model before it returns, so an application that exists
can serve. Its lanes and threads start and stop with the ASGI lifespan.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Never

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from service.api import docs, health
from service.api.dialects import native
from service.api.openapi import add_shared_parts, operation_id
from service.api.routes import HotRoutes
from service.batching.sizing import engine_config
from service.http.cors import PREFLIGHT_STATUS, AllowedOrigins
from service.http.edge import EdgeMiddleware
from service.http.forwarded import TrustedProxies
from service.http.scope import UNMATCHED
from service.http.shedding import LoadShedder, PacedRefusals, Refusal
from service.models.repository import resolve_models_dir
from service.models.selection import RepositoryConfig
from service.models.starting import StartGuard
from service.models.watcher import RepositoryWatcher, report_start
from service.running import Service
from service.settings import Settings
from service.system.cpus import usable_cpus
from service.system.version import package_version

HOT_ROUTERS = (native.hot,)  # endpoints that receive pictures, served before FastAPI
ROUTERS = (*HOT_ROUTERS, native.router, health.router)


class Application(FastAPI):
    """FastAPI behind the edge middleware and the hot routes."""

    def __init__(
        self, settings: Settings, service: Service, lifespan: Callable[[Any], Any]
    ) -> None:
        super().__init__(
            title="convserve",
            summary="A picture in, labelled probabilities out.",
            version=package_version(),
            license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
            lifespan=lifespan,
            docs_url=None,
            redoc_url=None,
            openapi_url=None,  # `docs.router` has it, written once
            generate_unique_id_function=operation_id,
            servers=[{"url": "."}],  # where the document is
            redirect_slashes=False,  # the redirect's target would come from the Host header
        )
        self._proxies = TrustedProxies(settings.forwarded_allow_ips)
        self._origins = AllowedOrigins(settings.cors_origins)
        self._prefix = (
            settings.root_path
        )  # not `root_path`, which FastAPI would pass on to the routes
        self._service = service
        self.state.service = service
        self.state.dependencies = service.dependencies
        self.state.shed = self.shed
        self._include((*ROUTERS, docs.router) if settings.docs else ROUTERS)

        refusals = PacedRefusals()
        routes = HotRoutes(HOT_ROUTERS, partial(FastAPI.__call__, self), refusals)
        self.shedder = LoadShedder(
            routes.template_of, service.refusal_of, service.metrics, refusals
        )
        inner = self._origins.preflights(routes) if self._origins else routes
        self.edge = EdgeMiddleware(inner, service.metrics, draining=lambda: service.draining)

    def _include(self, routers: tuple[APIRouter, ...]) -> None:
        routes = [*self.routes, *(route for router in routers for route in router.routes)]
        self._service.metrics.add_routes(_statuses(routes))
        for router in routers:
            self.include_router(router)

        # FastAPI's own error responses have another shape; the edge middleware answers instead.
        for kind in (HTTPException, RequestValidationError, Exception):
            self.add_exception_handler(kind, _reraise)

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            add_shared_parts(super().openapi())
        return super().openapi()  # the same object

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)  # the lifespan
            return
        scope["app"] = self
        self._prepare(scope)
        if self._origins:
            send = self._origins.sender(scope, send)
        await self.edge(scope, receive, send)

    def shed(self, scope: Scope) -> Refusal | None:
        """Returns the refusal of a request for which there is no room, None if it should go on."""
        if not self._service.crowded() or (self._origins and self._origins.allowed(scope)):
            return None
        if self._proxies or self._prefix:
            scope = dict(scope)  # it may go on, and must not be changed twice
            self._prepare(scope)
        return self.shedder.refuse(scope)

    def _prepare(self, scope: Scope) -> None:
        if self._proxies:
            self._proxies.apply(scope)
        if self._prefix and f"{scope['path']}/".startswith(f"{self._prefix}/"):
            scope["path"] = scope["path"].removeprefix(self._prefix) or "/"


def create_app(
    settings: Settings, working_dir: Path | None = None, guard: StartGuard | None = None
) -> FastAPI:
    """Loads the models and returns the ASGI application; `app.state.service` is its `Service`.

    `working_dir` is where `models` is searched if `models_dir` is not set. `guard` decides what
    happens when a version exceeds the limits while it is loaded in this process; by default the
    process exits with status 3.

    Raises:
        RepositoryError: there is nothing to serve, or a model cannot be served.
        ProviderUnavailable: a worker process does not start.
    """
    cpus = usable_cpus()
    config = RepositoryConfig(
        resolve_models_dir(settings.models_dir, working_dir or Path.cwd()),
        engine_config(settings, cpus),
        settings.repository_file,
        settings.skip_broken,
    )
    seen = config.snapshot()  # before loading, so that later changes are not missed
    service = Service(settings, config, cpus, guard)
    report_start(service.repository)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        watcher = RepositoryWatcher(
            config, service, metrics=service.metrics, seen=seen, load=service.load
        )
        service.watch(watcher)
        try:
            async with watcher.polling(settings.models_poll_s):
                yield
        finally:
            app.shedder.report(last=True)
            await service.stop()

    app = Application(settings, service, lifespan)
    return app


def _statuses(routes: Iterable[BaseRoute]) -> dict[str, set[int]]:
    """Returns the statuses that each route may answer with, for the metrics."""
    found = {UNMATCHED: {PREFLIGHT_STATUS, 400, 404, 408, 431, 500, 503}}
    for route in routes:
        if isinstance(route, Route):
            declared = getattr(route, "responses", {})  # FastAPI's own routes declare nothing
            statuses = found.setdefault(route.path, {200, 405, 500})
            statuses.update(int(status) for status in declared)
            if "POST" in (route.methods or ()):
                statuses.add(499)  # the client left before its body was read or answered
    return found


async def _reraise(_request: Request, error: Exception) -> Never:
    raise error

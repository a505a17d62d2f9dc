"""Wires the parts of the service together; the only place where that happens.

`create_app` loads, checks and warms up every model before it returns, so that an application that
exists can answer. Start and stop of its threads and lanes follow ASGI's lifespan.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Never

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from service import __name__ as package
from service.api import docs, health
from service.api.dependencies import Dependencies
from service.api.dialects import native
from service.api.payload import BodyLimits
from service.api.routes import in_front
from service.batching.batcher import BatchCallbacks
from service.batching.sizing import engine_config
from service.errors import Draining, ModelNotReady
from service.http.deadlines import Deadlines
from service.http.edge import EdgeMiddleware
from service.models.repository import Load, Repository, RepositoryConfig, resolve_models_dir
from service.models.watcher import RepositoryWatcher, fingerprint
from service.serving.admission import Admission
from service.serving.backend import LaneBackend, load_backend
from service.serving.classifier import ActiveBackend, Classifier
from service.settings import Settings
from service.system.cpus import usable_cpus
from service.system.metrics import Metrics
from service.system.version import package_version

log = logging.getLogger(package)

_STOP_S: Final = 5.0
"""How long a run that nobody waits for any more may take to end."""

_MAX_REQUEST_TIMEOUT_S: Final = 300.0
"""The longest deadline; who asks for more has a place in the queue until nobody is waiting."""

_MIN_BODY_RATE_BYTES_PER_S: Final = 50_000
"""The slowest upload that is accepted in the long run: a poor mobile network."""

HOT_ROUTERS = (native.hot,)
"""The endpoints that pictures come through, which are served ahead of FastAPI."""

ROUTERS = (*HOT_ROUTERS, native.router, health.router)
"""Every endpoint."""


class Application(FastAPI):
    """FastAPI behind the edge and behind the plain routes.

    Attributes:
        edge: what every request meets first.
    """

    edge: EdgeMiddleware

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        await self.edge(scope, receive, send)


class Service:
    """The running parts behind an application: what has to be started, watched and stopped."""

    def __init__(self, settings: Settings, config: RepositoryConfig) -> None:
        """Loads the models, here or in child processes, and builds the parts; starts nothing yet.

        Raises:
            ModelError, ProviderUnavailable: as `create_app`.
        """
        self.metrics = Metrics()
        self._started = False
        self.draining = False
        self.watcher: RepositoryWatcher | None = None
        self._backend = load_backend(settings, config, usable_cpus(), self._callbacks())
        self._retiring: dict[asyncio.Task[None], LaneBackend] = {}
        self._admission = Admission(
            max_images=settings.max_in_flight, max_bytes=settings.max_in_flight_bytes
        )
        self.dependencies = Dependencies(
            classifier=Classifier(ActiveBackend(self._backend)),
            admission=self._admission,
            metrics=self.metrics,
            body_limits=_body_limits(settings),
            deadlines=Deadlines(settings.request_timeout_s, _MAX_REQUEST_TIMEOUT_S),
            not_ready=self.not_ready,
            is_alive=self.is_alive,
        )
        self._watch()

    @property
    def repository(self) -> Repository:
        """The versions being served."""
        return self._backend.repository

    async def adopt(self, repository: Repository) -> None:
        """Serves these versions from now on; requests that are under way keep the ones they have.

        Args:
            repository: shares the objects of unchanged versions with the present one.

        Raises:
            ModelError, ProviderUnavailable: no lanes for them come up; nothing has changed.
        """
        old, backend = self.dependencies.classifier.active, self._backend
        self._backend = await backend.renewed(repository)
        self._backend.start()
        self.dependencies.classifier.active = ActiveBackend(self._backend)
        self._watch(backend.repository)

        task = asyncio.create_task(_retire(old, backend), name="retire")
        self._retiring[task] = backend
        task.add_done_callback(self._retiring.pop)

    @property
    def load(self) -> Load:
        """How a version that is published meanwhile is loaded and proven."""
        return self._backend.load

    def start(self) -> None:
        """Starts the lanes on the running event loop."""
        self._backend.start()
        self._started = True

    def poll_repository(self) -> None:
        """Has new versions looked for now, not at the next interval; on the event loop."""
        if self.watcher is not None:
            self.watcher.poll_soon()

    def begin_drain(self) -> None:
        """Makes /readyz say no; everything else goes on as before."""
        self.draining = True

    async def stop(self) -> None:
        """Ends lanes and threads; by now the server has finished or given up its requests."""
        self.draining = True
        self._admission.closed = True
        backends = [self._backend, *self._retiring.values()]
        if not all(await asyncio.gather(*(one.stop(_STOP_S) for one in backends))):
            log.error("a run did not end; it is abandoned")
        self._backend.close()

    def is_alive(self) -> bool:
        """False where only a new process would help."""
        return self._backend.alive

    def not_ready(self) -> Exception | None:
        """Returns why requests should not be sent here, or None."""
        if self.draining:
            return Draining("the service is shutting down")
        if not self._started:
            return ModelNotReady("the service is starting")
        trouble = self._backend.trouble()
        return ModelNotReady(trouble) if trouble else None

    def _callbacks(self) -> BatchCallbacks:
        metrics = self.metrics
        return BatchCallbacks(
            on_run=lambda name, size, _run_s: metrics.batch_size(name).observe(size),
            on_work=lambda name, work_s: metrics.lane_busy.labels(name).inc(work_s),
            on_replaced=lambda reason: metrics.lane_restarts.labels(reason.value).inc(),
        )

    def _watch(self, before: Repository | None = None) -> None:
        admission, backend, repository = self._admission, self._backend, self.repository
        self.metrics.watch_in_flight(lambda: admission.images, lambda: admission.n_bytes)
        self.metrics.watch_lanes(lambda: backend.n_lanes)
        for name in set(before.models if before else ()) - set(repository.models):
            self.metrics.forget_model(name)
        for name in repository.models:
            self.metrics.watch_model(name, partial(backend.batcher.waiting_for, name))
        self.metrics.show_models(
            (
                version.manifest.name,
                str(version.manifest.version),
                version.provider,
                version.fallback.kind if version.fallback else "none",
            )
            for version in repository.versions()
        )


async def _retire(active: ActiveBackend, backend: LaneBackend) -> None:
    """Stops a backend once the last request that may use it is answered."""
    await active.unused()
    await backend.stop(_STOP_S)


def create_app(settings: Settings, working_dir: Path | None = None) -> FastAPI:
    """Loads the models and returns the application that serves them.

    Args:
        settings: all of them.
        working_dir: where `models` is looked for if no repository is configured.

    Returns:
        An ASGI application; `app.state.service` is its `Service`.

    Raises:
        ModelError: a version cannot be served, and why.
        ProviderUnavailable: the provider asked for cannot be used here.
    """
    config = RepositoryConfig(
        resolve_models_dir(settings.models_dir, working_dir or Path.cwd()),
        engine_config(settings, usable_cpus()),
        settings.versions_per_model,
        settings.default_model,
    )
    seen = fingerprint(config.models_dir)
    service = Service(settings, config)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        service.watcher = RepositoryWatcher(
            config,
            lambda: service.repository,
            service.adopt,
            metrics=service.metrics,
            seen=seen,
            load=service.load,
        )
        try:
            async with service.watcher.polling(settings.models_poll_s):
                yield
        finally:
            await service.stop()

    app = Application(
        title="convserve",
        summary="A picture in, labelled probabilities out.",
        version=package_version(),
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs else None,
        redirect_slashes=False,  # the redirect's target would be built from the Host header
    )
    app.state.service = service
    app.state.dependencies = service.dependencies
    for router in ROUTERS:
        app.include_router(router)
    if settings.docs:
        app.include_router(docs.router)
    for kind in (HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _leave_to_edge)
    behind = partial(FastAPI.__call__, app)
    front = Router(in_front(HOT_ROUTERS), redirect_slashes=False, default=behind)
    app.edge = EdgeMiddleware(front, service.metrics, draining=lambda: service.draining)
    return app


async def _leave_to_edge(_request: Request, error: Exception) -> Never:
    raise error


def _body_limits(settings: Settings) -> BodyLimits:
    # What one request brings must fit while nothing else is in flight, or it could never succeed.
    return BodyLimits(
        max_bytes=min(settings.max_body_bytes, settings.max_in_flight_bytes),
        max_images=min(settings.max_images_per_request, settings.max_in_flight),
        timeout_s=settings.receive_timeout_s,
        min_rate_bytes_per_s=_MIN_BODY_RATE_BYTES_PER_S,
    )

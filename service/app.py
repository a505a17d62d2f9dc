"""Wires the parts of the service together; the only place where that happens.

`create_app` loads, checks and warms up every model before it returns, so that an application that
exists can answer. Start and stop of its threads and lanes follow ASGI's lifespan.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from contract.errors import ContractError
from contract.images import ImageLimits
from service import __name__ as package
from service.admission import Admission
from service.adoption import Adopter, fingerprint
from service.api import classify, docs, health, models
from service.api.deadlines import Deadlines
from service.api.express import Express
from service.api.middleware import Edge
from service.api.payload import BodyLimits
from service.api.problems import count_refusal, problem_response
from service.api.state import REQUEST_ID, Parts
from service.batcher import Batcher, BatchLimits
from service.classifier import Classifier, Serving
from service.cpus import usable_cpus
from service.errors import Draining, ModelNotReady, ServiceError
from service.local import LocalAnswerer
from service.metrics import Metrics
from service.providers import PROVIDERS
from service.repository import (
    LoadedVersion,
    Repository,
    RunPlan,
    Shelf,
    load_repository,
    resolve_models_dir,
)
from service.settings import Settings
from service.version import package_version

log = logging.getLogger(package)

_STOP_S: Final = 5.0
"""How long a run that nobody waits for any more may take to end."""

ROUTERS = (classify.router, models.router, health.router)
"""Every endpoint; a new dialect is a new row."""


class Application(FastAPI):
    """FastAPI behind the edge, which is outermost so that its short way is short.

    Attributes:
        edge: what every request meets first.
    """

    edge: Edge

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection event."""
        await self.edge(scope, receive, send)


class Service:
    """The running parts behind an application: what has to be started, watched and stopped."""

    def __init__(self, settings: Settings, repository: Repository) -> None:
        """Builds the parts; nothing runs yet."""
        self.metrics = Metrics()
        self._cpus = usable_cpus()
        self._settings = settings
        self._started = False
        self.draining = False
        on_cores = all(PROVIDERS[one.provider].runs_on_cores for one in repository.versions())
        threads = settings.prepare_threads or max(1, self._cpus // (2 if on_cores else 1))
        self._pool = ThreadPoolExecutor(threads, "prepare")
        self._answerers = {one.key: self._answerer(one) for one in repository.versions()}
        self._retiring: dict[asyncio.Task[None], list[Batcher]] = {}
        self._admission = Admission(
            max_images=settings.max_in_flight, max_bytes=settings.max_in_flight_bytes
        )
        self.parts = Parts(
            classifier=Classifier(Serving(repository, dict(self._answerers))),
            admission=self._admission,
            metrics=self.metrics,
            prepare_pool=self._pool,
            body_limits=_body_limits(settings),
            deadlines=Deadlines(settings.request_timeout_s, settings.max_request_timeout_s),
            not_ready=self.not_ready,
            is_alive=self.is_alive,
        )
        self._watch(repository)

    @property
    def repository(self) -> Repository:
        """The versions being served."""
        return self.parts.classifier.serving.repository

    def adopt(self, repository: Repository) -> None:
        """Serves these versions from now on; requests that are under way keep the ones they have.

        Args:
            repository: shares the objects of unchanged versions with the present one, whose
                batchers go on as they are.
        """
        old = self.parts.classifier.serving
        unchanged = {id(version) for version in old.repository.versions()}
        answerers = {}
        for version in repository.versions():
            if id(version) in unchanged:
                answerers[version.key] = self._answerers[version.key]
            else:
                answerers[version.key] = self._answerer(version)
                answerers[version.key].batcher.start()
        kept = set(answerers.values())
        retired = [one.batcher for one in self._answerers.values() if one not in kept]
        self._answerers = answerers
        self.parts.classifier.serving = Serving(repository, dict(answerers))
        self._watch(repository, old.repository)
        task = asyncio.create_task(_retire(old, retired), name="retire")
        self._retiring[task] = retired
        task.add_done_callback(self._retiring.pop)

    def start(self) -> None:
        """Starts the lanes on the running event loop."""
        for batcher in self._batchers():
            batcher.start()
        self._started = True

    def begin_drain(self) -> None:
        """Makes /readyz say no; everything else goes on as before."""
        self.draining = True

    async def stop(self) -> None:
        """Ends the lanes and threads; by now the server has finished or given up its requests."""
        self.draining = True
        self._admission.closed = True
        finished = await asyncio.gather(
            *(batcher.stop(_STOP_S) for batcher in self._all_batchers())
        )
        if not all(finished):
            log.error("a run did not end; it is abandoned")
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def at_rest(self) -> bool:
        """True while no lane is inside the runtime."""
        return all(batcher.at_rest for batcher in self._all_batchers())

    def is_alive(self) -> bool:
        """True while every lane of every model runs and none is stuck."""
        return not self._started or all(batcher.alive for batcher in self._batchers())

    def not_ready(self) -> Exception | None:
        """Returns why requests should not be sent here, or None."""
        if self.draining:
            return Draining("the service is shutting down")
        if not self._started:
            return ModelNotReady("the service is starting")
        if not self.is_alive():
            return ModelNotReady("a lane is dead or stuck")
        return None

    def _all_batchers(self) -> list[Batcher]:
        retiring = [one for batchers in self._retiring.values() for one in batchers]
        return [*self._batchers(), *retiring]

    def _batchers(self) -> list[Batcher]:
        return [answerer.batcher for answerer in self._answerers.values()]

    def _answerer(self, version: LoadedVersion) -> LocalAnswerer:
        batcher = Batcher(
            version.engine,
            self._batch_limits(version),
            on_run=partial(self._observe_run, version.manifest.name),
            on_work=self.metrics.lane_busy.labels(version.manifest.name).inc,
        )
        return LocalAnswerer(
            batcher,
            version.manifest,
            _image_limits(self._settings),
            self._pool,
            on_lanes=PROVIDERS[version.provider].runs_on_cores,
        )

    def _batch_limits(self, version: LoadedVersion) -> BatchLimits:
        settings = self._settings
        default_lanes = PROVIDERS[version.provider].default_lanes or max(
            1, self._cpus // settings.threads_per_lane
        )
        return BatchLimits(
            max_batch_size=version.max_batch_size,
            max_wait_s=settings.max_wait_ms / 1e3,
            max_queue=settings.max_in_flight,
            lanes=settings.lanes or default_lanes,
            stuck_after_s=settings.stuck_after_s,
        )

    def _observe_run(self, name: str, size: int, _run_s: float) -> None:
        self.metrics.batch_size.observe((name,), size)

    def _watch(self, repository: Repository, before: Repository | None = None) -> None:
        admission = self._admission
        self.metrics.watch_in_flight(lambda: admission.images, lambda: admission.n_bytes)
        for name in set(before.models if before else ()) - set(repository.models):
            self.metrics.forget_model(name)
        for name, versions in repository.models.items():
            batchers = [self._answerers[name, number].batcher for number in versions]
            self.metrics.watch_model(
                name, partial(_total_waiting, batchers), partial(_total_lanes, batchers)
            )
        self.metrics.show_models(
            (
                version.manifest.name,
                str(version.manifest.version),
                version.provider,
                version.fallback.kind if version.fallback else "none",
            )
            for version in repository.versions()
        )


async def _retire(serving: Serving, batchers: list[Batcher]) -> None:
    """Stops batchers once the last request that may use them is answered."""
    await serving.unused()
    await asyncio.gather(*(batcher.stop(_STOP_S) for batcher in batchers))


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
    plan = RunPlan(
        settings.provider,
        threads=settings.threads_per_lane,
        wide_threads=usable_cpus(),
        max_batch_size=settings.max_batch_size,
    )
    shelf = Shelf(
        resolve_models_dir(settings.models_dir, working_dir or Path.cwd()),
        plan,
        settings.versions_per_model,
        settings.default_model,
    )
    seen = fingerprint(shelf.models_dir)
    service = Service(settings, load_repository(shelf))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        adopter = Adopter(
            shelf, lambda: service.repository, service.adopt, metrics=service.metrics, seen=seen
        )
        try:
            async with adopter.looking(settings.models_poll_s):
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
    app.state.parts = service.parts
    for router in ROUTERS:
        app.include_router(router)
    if settings.docs:
        app.include_router(docs.router)
    for kind in (ServiceError, ContractError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer_problem)
    app.edge = Edge(
        partial(FastAPI.__call__, app),
        Express(service.parts),
        service.metrics,
        closing=lambda: service.draining,
    )
    return app


async def _answer_problem(request: Request, error: Exception) -> Response:
    # A coroutine, because Starlette would run a plain function in a thread.
    count_refusal(request.app.state.parts.metrics, error)
    return problem_response(error, request.scope[REQUEST_ID])


def _total_waiting(batchers: list[Batcher]) -> float:
    return sum(batcher.waiting for batcher in batchers)


def _total_lanes(batchers: list[Batcher]) -> float:
    return sum(batcher.limits.lanes for batcher in batchers)


def _image_limits(settings: Settings) -> ImageLimits:
    return ImageLimits(
        max_pixels=settings.max_image_pixels,
        max_webp_pixels=settings.max_webp_pixels,
        min_side_px=settings.min_side_px,
        max_aspect=settings.max_aspect,
        max_jpeg_scans=settings.max_jpeg_scans,
    )


def _body_limits(settings: Settings) -> BodyLimits:
    # What one request brings must fit while nothing else is in flight, or it could never succeed.
    return BodyLimits(
        max_bytes=min(settings.max_body_bytes, settings.max_in_flight_bytes),
        max_images=min(settings.max_images_per_request, settings.max_in_flight),
        timeout_s=settings.body_timeout_s,
        min_rate_bytes_per_s=settings.min_body_rate_bytes_per_s,
    )

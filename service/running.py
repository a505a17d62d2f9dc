"""The running parts behind an application: creates, starts, replaces and stops them."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from service import __name__ as package
from service.admin.actions import AdminActions, AdminPort, ServedState
from service.admin.token import AdminToken
from service.api.dependencies import Dependencies
from service.api.payload import BodyLimits
from service.batching.batcher import BatchCallbacks
from service.batching.lane import RestartReason
from service.errors import REFUSALS, Draining, ModelNotReady, Overloaded
from service.http.deadlines import Deadlines
from service.http.problems import PROBLEMS
from service.http.scope import UNMATCHED
from service.models.changelog import ChangeLog, changes_between
from service.models.repository import Load, Repository
from service.models.selection import RepositoryConfig
from service.models.starting import StartGuard
from service.models.watcher import RepositoryWatcher
from service.serving.admission import Admission
from service.serving.backend import LaneBackend, load_backend
from service.serving.classifier import ActiveBackend, Classifier
from service.settings import MAX_REQUEST_TIMEOUT_S, Settings
from service.system.metrics import LabelValues, Metrics
from service.system.process import return_freed_memory
from service.system.threads import DaemonThread

log = logging.getLogger(package)

_STOP_S: Final = 5.0  # for a run that is still going on when its lane should stop
_MIN_BODY_RATE_BYTES_PER_S: Final = 50_000  # a poor mobile network

LABEL_VALUES: Final = LabelValues(
    error_codes=tuple(code for code, problem in PROBLEMS.items() if not problem.admin),
    picture_codes=tuple(code for code, problem in PROBLEMS.items() if problem.picture),
    refusals=REFUSALS,
    restart_reasons=tuple(reason.value for reason in RestartReason),
)


class Service:
    """The running parts behind an application: creates, starts, replaces and stops them."""

    def __init__(
        self,
        settings: Settings,
        config: RepositoryConfig,
        cpus: int,
        guard: StartGuard | None = None,
    ) -> None:
        self.metrics = Metrics(LABEL_VALUES)
        self.changes = ChangeLog()
        self._settings = settings
        self._config = config
        self._started = False
        self.draining = False
        self.watcher: RepositoryWatcher | None = None  # set when the lifespan starts
        self._poll_wanted = False

        # This loads the models, here or in worker processes, but starts no lanes yet.
        self._backend = load_backend(settings, config, cpus, self._callbacks(), guard)
        self._retiring: dict[asyncio.Task[None], LaneBackend] = {}  # replaced, but still in use

        self._admission = Admission(
            max_images=settings.max_in_flight, max_bytes=settings.max_in_flight_bytes
        )
        self.dependencies = Dependencies(
            classifier=Classifier(ActiveBackend(self._backend)),
            admission=self._admission,
            metrics=self.metrics,
            body_limits=_body_limits(settings),
            deadlines=Deadlines(settings.request_timeout_s, MAX_REQUEST_TIMEOUT_S),
            not_ready=self.not_ready,
            is_alive=self.is_alive,
            root_path=settings.root_path,
        )
        self.metrics.watch_in_flight(
            lambda: self._admission.images, lambda: self._admission.n_bytes
        )
        self.metrics.watch_ready(lambda: self.not_ready() is None)
        self.metrics.watch_lanes(
            lambda: self._backend.n_lanes, lambda: self._backend.batcher.limits.lanes
        )
        self.metrics.watch_workers(
            lambda: [pid for one in (self._backend, *self._retiring.values()) for pid in one.pids]
        )
        self._show_versions()

    @property
    def repository(self) -> Repository:
        return self._backend.repository

    async def adopt(self, repository: Repository) -> None:
        """Serves these versions from now on; requests in progress keep the versions they started with.

        `repository` shares the objects of unchanged versions with the current one.

        Raises:
            ModelError, ProviderUnavailable: the new lanes did not start; the old ones go on serving.
        """
        before = self.repository
        await self._serve(repository)
        for change in changes_between(before, repository, self.changes):
            self.changes.record(change)

    async def _serve(self, repository: Repository) -> None:
        if self._backend.serves(repository):  # but perhaps another of them answers
            self._backend.repository = repository
            return

        old, backend = self.dependencies.classifier.active, self._backend
        self._backend = await backend.renewed(repository)
        self._backend.start()
        self.dependencies.classifier.active = ActiveBackend(self._backend)
        task = asyncio.create_task(_retire(old, backend), name="retire")
        self._retiring[task] = backend
        task.add_done_callback(self._retired)
        self._show_versions()

    def admin_port(self, token: AdminToken) -> AdminPort:
        """Returns what the application of the admin port needs."""
        return AdminPort(
            actions=AdminActions(
                models_dir=self._config.models_dir,
                repository_file=self._config.file_path,
                listing=partial(self._config.listing.list, self._config.models_dir),
                state=self._served_state,
                reload=self._reload,
                verify=self._verify,
            ),
            changes=self.changes,
            token=token,
            metrics=self.metrics,
            poll_timeout_s=self._settings.load_timeout_s,
            draining=lambda: self.draining,
        )

    def _served_state(self) -> ServedState:
        return ServedState.of(self.repository, self.watcher.not_adopted if self.watcher else None)

    async def _reload(self) -> None:
        if self.watcher is not None:
            await self.watcher.poll()

    async def _verify(self, name: str, number: int) -> None:
        thread = DaemonThread("verify")
        prove, config = self._backend.prove, self._config
        call = partial(prove, config.models_dir, name, number, config.engine_config)
        try:
            await asyncio.wrap_future(thread.submit(call))
        finally:
            thread.close()

    @property
    def load(self) -> Load:
        return self._backend.load

    def start(self) -> None:
        self._backend.start()
        self._started = True

    def poll_repository(self) -> None:
        """Polls for new versions now, or as soon as the watcher is there."""
        self._poll_wanted = self.watcher is None
        if self.watcher is not None:
            self.watcher.poll_soon()

    def watch(self, watcher: RepositoryWatcher) -> None:
        self.watcher = watcher
        if self._poll_wanted:
            self.poll_repository()

    def begin_drain(self) -> None:
        self.draining = True  # /readyz fails from now on, everything else goes on

    async def stop(self) -> None:
        # By now the server has finished or cancelled all requests.
        self.draining = True
        self._admission.closed = True
        backends = [self._backend, *self._retiring.values()]
        if not all(await asyncio.gather(*(one.stop(_STOP_S) for one in backends))):
            log.error("a run did not end in time and was abandoned", extra={"timeout_s": _STOP_S})
        self._backend.close()

    def crowded(self) -> bool:
        """Returns whether there may be no room for a request."""
        return self._admission.crowded and not self.draining

    def refusal_of(self, client: str) -> Overloaded | None:
        """Returns why a client's request would be refused now, None if it would not be."""
        return self._admission.refusal(client)

    def is_alive(self) -> bool:
        """Returns False if only a restart of the process would help."""
        return self._backend.alive

    def not_ready(self, model: str | None = None) -> Exception | None:
        """Returns why the model, or the default model, should get no requests now, or None.

        Raises:
            ModelNotFound: there is no model of this name.
        """
        if self.draining:
            return Draining("the service is shutting down")
        if not self._started:
            return ModelNotReady("the service is starting")
        reason = self.repository.trouble(model)
        trouble = self._backend.trouble()
        if trouble is None and reason is not None:
            trouble = f"the model {model or self.repository.default_name!r} cannot answer: {reason}"
        return ModelNotReady(trouble) if trouble else None

    def count_refused_head(self, code: str) -> None:
        self.metrics.count_refused_head(UNMATCHED, PROBLEMS[code].status, code)

    def _callbacks(self) -> BatchCallbacks:
        metrics = self.metrics
        return BatchCallbacks(
            on_run=lambda key, size, _run_s: metrics.count_run(key, size),
            on_work=metrics.count_work,
            on_replaced=lambda reason: metrics.lane_restarts.labels(reason.value).inc(),
        )

    def _retired(self, task: asyncio.Task[None]) -> None:
        del self._retiring[task]  # its versions and their sessions go with it
        self._show_versions()

        # The memory they leave is scattered, and malloc by itself returns only what lies at an end.
        thread = DaemonThread("trim")
        thread.post(return_freed_memory)
        thread.close()

    def _show_versions(self) -> None:
        """Gives every version its series, and takes away those of versions no longer in use."""
        backend, repository = self._backend, self.repository
        for version in repository.versions():
            self.metrics.add_version(version.key, partial(backend.batcher.waiting_for, version.key))

        # A version that is being replaced still answers the requests that began with it.
        used = [repository, *(one.repository for one in self._retiring.values())]
        self.metrics.keep_versions({version.key for one in used for version in one.versions()})

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
    await active.wait_unused()  # until the last request that may use it is answered
    await backend.stop(_STOP_S)


def _body_limits(settings: Settings) -> BodyLimits:
    # A request above the in-flight limits could never succeed, not even alone.
    return BodyLimits(
        max_bytes=min(settings.max_body_bytes, settings.max_in_flight_bytes),
        max_images=min(settings.max_images_per_request, settings.max_in_flight),
        timeout_s=settings.receive_timeout_s,
        min_rate_bytes_per_s=_MIN_BODY_RATE_BYTES_PER_S,
    )

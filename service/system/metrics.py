"""All Prometheus metrics of the service.

Label values come from closed sets (route templates, declared statuses, served versions, error codes), so
clients cannot create series. All series of a set exist from the start, at 0: `increase()` does not see
the first event of a series that appears with it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics import MetricWrapperBase

from service.system.cpus import usable_cpus
from service.system.pacing import Allowance
from service.system.usage import UsageCollector
from service.system.version import package_version

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

# Rendering takes 4 to 6 ms of the event loop, so that a flood of requests gets 5% of it.
_PAGES_PER_S: Final = 10
_PAGES_AT_ONCE: Final = 20

_STAGES: Final = ("receive", "decode", "preprocess", "queue", "infer", "rank")
_ADOPTION_OUTCOMES: Final = ("adopted", "failed")
_ADMIN_OUTCOMES: Final = ("ok", "unauthorized", "refused", "failed")
# A status that its route does not declare is counted in its class.
_STATUS_CLASSES: Final = ("2xx", "3xx", "4xx", "5xx")

VersionKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class MetricDescription:
    """One row of the metrics reference. `name` is as scraped, without a histogram's suffixes."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class LabelValues:
    """The closed sets of label values that are known before models are loaded.

    Attributes:
        error_codes: what a request can get.
        picture_codes: what one picture of a request can get.
        refusals: error codes and reasons of requests that are refused for lack of capacity.
        restart_reasons: why lanes are replaced.
    """

    error_codes: tuple[str, ...] = ()
    picture_codes: tuple[str, ...] = ()
    refusals: tuple[tuple[str, str], ...] = ()
    restart_reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _VersionSeries:
    """The series of one version.

    Every request touches them. `labels` takes a lock and costs more than counting, so its results are
    kept here. When the version retires, this object goes with its series.
    """

    images: Callable[[str], Counter]  # by outcome
    stage_seconds: Callable[[str], Histogram]
    batch_size: Histogram
    lane_busy: Counter


class Metrics:
    """The metrics of one application, in their own registry."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, values: LabelValues = LabelValues()) -> None:
        # A `_created` series beside every counter and histogram would cost a fifth of all series.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._values = values

        # Traffic
        self._requests = Counter(
            "convserve_requests_total",
            "HTTP requests by route template and status. 499: the client left. A status that the "
            "route does not declare counts in its class, such as 4xx.",
            ("route", "status"),
            registry=registry,
        )
        self._request_seconds = Histogram(
            "convserve_request_seconds",
            "Seconds from the request head to the last byte of the response.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.request_errors = Counter(
            "convserve_request_errors_total",
            "Requests answered with an error, by error code; without health checks.",
            ("code",),
            registry=registry,
        )
        self.refused = Counter(
            "convserve_refused_total",
            "Requests refused with 503 or 504, by error code and by the limit that was reached; "
            "without health checks.",
            ("code", "reason"),
            registry=registry,
        )
        self._images = Counter(
            "convserve_images_total",
            "Pictures by version and outcome: ok, or the error code.",
            ("model", "version", "outcome"),
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "convserve_stage_seconds",
            "Seconds in each stage, for the slowest picture of a request.",
            ("model", "version", "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_size = Histogram(
            "convserve_batch_size",
            "Pictures in one run.",
            ("model", "version"),
            buckets=_SIZES,
            registry=registry,
        )

        # Load
        self._in_flight = Gauge(
            "convserve_images_in_flight",
            "Pictures accepted but not answered yet.",
            registry=registry,
        )
        self._in_flight_bytes = Gauge(
            "convserve_upload_bytes_in_flight", "Bytes of uploads in memory.", registry=registry
        )
        self._waiting = Gauge(
            "convserve_images_waiting",
            "Pictures waiting for a run.",
            ("model", "version"),
            registry=registry,
        )
        self._lane_busy = Counter(
            "convserve_lane_busy_seconds_total",
            "Seconds that lanes were busy. Divided by time and number of lanes: their utilisation.",
            ("model", "version"),
            registry=registry,
        )

        # State
        self._ready = Gauge(
            "convserve_ready", "1 while /readyz succeeds, else 0.", registry=registry
        )
        self._lanes = Gauge(
            "convserve_lanes",
            "Lanes that are ready or busy: the number of possible runs at the same time.",
            registry=registry,
        )
        self._lanes_configured = Gauge(
            "convserve_lanes_configured",
            "Lanes that there should be. More than convserve_lanes while lanes start or are lost.",
            registry=registry,
        )
        self.lane_restarts = Counter(
            "convserve_lane_restarts_total",
            "Lanes replaced, by reason: died or stuck (threads); not_started, exited, stopped, "
            "overdue, memory or terminated (processes).",
            ("reason",),
            registry=registry,
        )
        self.adoptions = Counter(
            "convserve_adoptions_total",
            "Changes to the model repository while serving: adopted, or failed once per version.",
            ("outcome",),
            registry=registry,
        )
        self.adoptions_failing = Gauge(
            "convserve_adoptions_failing",
            "Problems in the model repository now: versions that failed, an invalid repository.toml.",
            registry=registry,
        )
        self.versions_held = Gauge(
            "convserve_versions_held",
            "Versions that are held back because they do not satisfy their model's requirements.",
            registry=registry,
        )
        self._admin_requests = Counter(
            "convserve_admin_requests_total",
            "Requests to the admin port: ok, unauthorized (no valid token), refused (4xx) or failed "
            "(5xx).",
            ("outcome",),
            registry=registry,
        )
        self._model_info = Gauge(
            "convserve_model_info",
            "1 for each loaded version. provider_fallback is none, not_installed or failed.",
            ("model", "version", "provider", "provider_fallback"),
            registry=registry,
        )
        self.log_records_dropped = Counter(
            "convserve_log_records_dropped_total",
            "Log records dropped because the reader of the log was too slow.",
            registry=registry,
        )

        # The process and the machine
        build_info = Gauge(
            "convserve_build_info",
            "1. The versions of convserve, of Python and of onnxruntime.",
            ("version", "python", "onnxruntime"),
            registry=registry,
        )
        build_info.labels(package_version(), platform.python_version(), _onnxruntime()).set(1)
        cpus = Gauge("convserve_cpus", "CPU cores that the service may use.", registry=registry)
        cpus.set(usable_cpus())
        self._worker_pids: Callable[[], Iterable[int]] = tuple
        registry.register(UsageCollector(lambda: self._worker_pids()))
        ProcessCollector(registry=registry)

        # `labels` costs more than counting, and refusals come by the thousand.
        self._error_of = cache(self.request_errors.labels)
        self._refusal_of = cache(self.refused.labels)
        for code in values.error_codes:
            self._error_of(code)
        for code, reason in values.refusals:
            self._refusal_of(code, reason)
        for reason in values.restart_reasons:
            self.lane_restarts.labels(reason)
        for outcome in _ADOPTION_OUTCOMES:
            self.adoptions.labels(outcome)
        for outcome in _ADMIN_OUTCOMES:
            self._admin_requests.labels(outcome)

        self._page = b""
        self._pages = Allowance(_PAGES_AT_ONCE, _PAGES_PER_S)

        self._by_route: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._by_version: dict[VersionKey, _VersionSeries] = {}
        self._of_versions: tuple[MetricWrapperBase, ...] = (
            *(self._images, self._stage_seconds, self._batch_size),
            *(self._lane_busy, self._waiting),
        )

    # Which series there are

    def add_routes(self, statuses: Mapping[str, Iterable[int]]) -> None:
        """Creates the series of all routes, from the statuses that each may answer with."""
        for route, declared in statuses.items():
            seconds = self._request_seconds.labels(route)
            for status in declared:
                self._by_route[route, status] = self._requests.labels(route, status), seconds
            for status_class in _STATUS_CLASSES:
                self._requests.labels(route, status_class)

    def add_version(self, key: VersionKey, waiting: Callable[[], float]) -> None:
        """Creates the series of a version, unless it has them. `waiting` returns pictures waiting."""
        labels = key[0], str(key[1])
        self._waiting.labels(*labels).set_function(waiting)
        if key in self._by_version:
            return

        series = self._by_version[key] = _VersionSeries(
            cache(partial(self._images.labels, *labels)),
            cache(partial(self._stage_seconds.labels, *labels)),
            self._batch_size.labels(*labels),
            self._lane_busy.labels(*labels),
        )
        for outcome in ("ok", *self._values.picture_codes):
            series.images(outcome)
        for stage in _STAGES:
            series.stage_seconds(stage)

    def keep_versions(self, keys: Collection[VersionKey]) -> None:
        """Removes the series of all other versions."""
        for name, number in self._by_version.keys() - keys:
            del self._by_version[name, number]
            labels = {"model": name, "version": str(number)}
            for metric in self._of_versions:
                metric.remove_by_labels(labels)

    def show_models(self, served: Iterable[tuple[str, str, str, str]]) -> None:
        """Replaces the series of the model gauge: (model, version, provider, fallback) each."""
        self._model_info.clear()
        for labels in served:
            self._model_info.labels(*labels).set(1)

    # What gauges read, whenever metrics are collected

    def watch_in_flight(self, images: Callable[[], float], n_bytes: Callable[[], float]) -> None:
        self._in_flight.set_function(images)
        self._in_flight_bytes.set_function(n_bytes)

    def watch_lanes(self, ready: Callable[[], float], configured: Callable[[], float]) -> None:
        self._lanes.set_function(ready)
        self._lanes_configured.set_function(configured)

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        self._ready.set_function(ready)

    def watch_workers(self, pids: Callable[[], Iterable[int]]) -> None:
        self._worker_pids = pids

    # Events

    def count_request(self, route: str, status: int, seconds: float) -> None:
        series = self._by_route.get((route, status))
        if series is None:
            # Not kept in `_by_route`: it is rare, and an application can answer with any number.
            known = 200 <= status < 600
            status_class = f"{status // 100}xx" if known else "5xx"
            series = self._requests.labels(route, status_class), self._request_seconds.labels(route)
        requests, request_seconds = series
        requests.inc()
        request_seconds.observe(seconds)

    def count_error(self, code: str, refusal: str | None) -> None:
        self._error_of(code).inc()
        if refusal is not None:
            self._refusal_of(code, refusal).inc()

    def count_refusals(self, route: str, code: str, reason: str, seconds: Sequence[float]) -> None:
        """Counts requests that were refused with 503, and the seconds that each took."""
        requests, request_seconds = self._by_route[route, 503]
        requests.inc(len(seconds))
        self._error_of(code).inc(len(seconds))
        self._refusal_of(code, reason).inc(len(seconds))
        for one in seconds:
            request_seconds.observe(one)

    def count_admin_request(self, status: int) -> None:
        if status == 401:
            outcome = "unauthorized"
        else:
            outcome = "ok" if status < 400 else "refused" if status < 500 else "failed"
        self._admin_requests.labels(outcome).inc()

    def count_refused_head(self, route: str, status: int, code: str) -> None:
        """Counts a request that was refused before it reached the application."""
        self._requests.labels(route, status).inc()
        self._error_of(code).inc()

    def count_answer(
        self, key: VersionKey, outcomes: Iterable[str], stages: Iterable[tuple[str, float]]
    ) -> None:
        """Counts the pictures of a request and the seconds of its stages."""
        series = self._by_version.get(key)
        if series is None:
            return
        for outcome in outcomes:
            series.images(outcome).inc()
        for stage, seconds in stages:
            series.stage_seconds(stage).observe(seconds)

    # A run that was abandoned can end after its version has retired, so the version may be unknown.

    def count_run(self, key: VersionKey, size: int) -> None:
        if series := self._by_version.get(key):
            series.batch_size.observe(size)

    def count_work(self, key: VersionKey, seconds: float) -> None:
        if series := self._by_version.get(key):
            series.lane_busy.inc(seconds)

    # The page

    def describe(self) -> list[MetricDescription]:
        found = []
        for collector in self._registry._collector_to_names:
            labels, families = (), collector.collect()
            if isinstance(collector, MetricWrapperBase):
                labels, families = tuple(collector._labelnames), collector.describe()
            for one in families:
                name = one.name + ("_total" if one.type == "counter" else "")
                found.append(MetricDescription(name, one.type, labels, one.documentation))
        return found

    def page(self) -> bytes:
        """Returns the page in the text format, under many requests up to 0.1 s old."""
        if self._pages.take() or not self._page:
            self._page = self.render()
        return self._page

    def render(self) -> bytes:
        return generate_latest(self._registry)


def _onnxruntime() -> str:
    # From the package's metadata: importing it here would load it into a process without lanes.
    for package in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            return version(package)
    return "unknown"

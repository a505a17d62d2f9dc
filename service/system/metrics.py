"""Every Prometheus metric of the service, in one place.

Label values come from closed sets (route templates, status codes, served models, error codes), so
that no client can create series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics import MetricWrapperBase

from service.system.histogram import LoopHistogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class MetricDescription:
    """What one metric is: its name as scraped (a histogram adds suffixes), its type, its labels and its meaning."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class Metrics:
    """The metrics of one application, with a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "convserve_requests_total",
            "HTTP requests by route template and status.",
            ("route", "status"),
            registry=registry,
        )
        self.request_seconds = LoopHistogram(
            "convserve_request_seconds",
            "Seconds from the request head to the last byte of the answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.images = Counter(
            "convserve_images_total",
            "Pictures by model and outcome: ok, or the code of the picture's error.",
            ("model", "outcome"),
            registry=registry,
        )
        self.stage_seconds = LoopHistogram(
            "convserve_stage_seconds",
            "Seconds that a request's slowest picture spent in each stage.",
            ("model", "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = LoopHistogram(
            "convserve_batch_size",
            "Pictures in one run.",
            ("model",),
            buckets=_SIZES,
            registry=registry,
        )
        self.refused = Counter(
            "convserve_refused_total",
            "Requests refused with 503 or 504, by error code and by the bound that was met.",
            ("code", "reason"),
            registry=registry,
        )
        self._in_flight = Gauge(
            "convserve_images_in_flight",
            "Pictures accepted and not yet answered.",
            registry=registry,
        )
        self._in_flight_bytes = Gauge(
            "convserve_upload_bytes_in_flight", "Bytes of uploads being held.", registry=registry
        )
        self.lane_busy = Counter(
            "convserve_lane_busy_seconds_total",
            "Seconds that lanes have been at work; over time and lanes it is their utilisation.",
            ("model",),
            registry=registry,
        )
        self._lanes = Gauge(
            "convserve_lanes", "Runs at the same time.", ("model",), registry=registry
        )
        self._waiting = Gauge(
            "convserve_images_waiting", "Pictures waiting for a run.", ("model",), registry=registry
        )
        self.model_info = Gauge(
            "convserve_model_info",
            "1 for each loaded version; provider_fallback is none, not_installed or failed.",
            ("model", "version", "provider", "provider_fallback"),
            registry=registry,
        )
        self.adoptions = Counter(
            "convserve_adoptions_total",
            "Changes of the model repository while serving: adopted, or failed for a version.",
            ("outcome",),
            registry=registry,
        )
        self._workers = Gauge(
            "convserve_workers",
            "Worker processes by state: starting, live, doubtful (silent, gets no new work) or "
            "retiring.",
            ("state",),
            registry=registry,
        )
        self.worker_restarts = Counter(
            "convserve_worker_restarts_total",
            "Worker processes replaced, by reason: exited, silent, overdue, lanes, memory or "
            "terminated.",
            ("reason",),
            registry=registry,
        )
        self.log_records_dropped = Counter(
            "convserve_log_records_dropped_total",
            "Log records dropped because the log's reader was too slow.",
            registry=registry,
        )

    def watch_in_flight(self, images: Callable[[], float], n_bytes: Callable[[], float]) -> None:
        """Reads the in-flight gauges from these functions whenever metrics are collected."""
        self._in_flight.set_function(images)
        self._in_flight_bytes.set_function(n_bytes)

    def watch_model(
        self, model: str, waiting: Callable[[], float], lanes: Callable[[], float]
    ) -> None:
        """Reads the gauges of a model from these functions whenever metrics are collected."""
        self._waiting.labels(model).set_function(waiting)
        self._lanes.labels(model).set_function(lanes)

    def forget_model(self, model: str) -> None:
        """Drops the gauges of a model that is not served any more."""
        self._waiting.remove(model)
        self._lanes.remove(model)
        self.lane_busy.remove(model)

    def watch_workers(self, count: Callable[[str], float]) -> None:
        """Reads the workers in each state from this function whenever metrics are collected."""
        for state in ("starting", "live", "doubtful", "retiring"):
            self._workers.labels(state).set_function(partial(count, state))

    def show_models(self, served: Iterable[tuple[str, str, str, str]]) -> None:
        """Lists these in the model gauge (model, version, provider, fall-back) and no others."""
        self.model_info.clear()
        for labels in served:
            self.model_info.labels(*labels).set(1)

    def describe(self) -> list[MetricDescription]:
        """Describes every metric, for the reference page and the tests."""
        return [
            _describe(metric)
            for metric in vars(self).values()
            if isinstance(metric, MetricWrapperBase | LoopHistogram)
        ]

    def render(self) -> bytes:
        """Returns all metrics in the Prometheus text format."""
        return generate_latest(self._registry)


def _describe(metric: MetricWrapperBase | LoopHistogram) -> MetricDescription:
    if isinstance(metric, LoopHistogram):
        return MetricDescription(metric.name, "histogram", metric.labelnames, metric.documentation)
    suffix = "_total" if metric._type == "counter" else ""
    return MetricDescription(
        metric._name + suffix,
        metric._type or "",
        tuple(metric._labelnames),
        metric._documentation or "",
    )

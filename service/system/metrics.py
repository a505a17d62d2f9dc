"""Every Prometheus metric of the service, in one place.

Label values come from closed sets (route templates, status codes, served models, error codes), so
that no client can create series.

Metrics that every request touches are attributes that are called with label values and return the
child to count with. `labels` takes a lock and costs more than counting does, so what it returned is
kept; a series of theirs is never removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics import MetricWrapperBase

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
        requests = Counter(
            "convserve_requests_total",
            "HTTP requests by route template and status.",
            ("route", "status"),
            registry=registry,
        )
        request_seconds = Histogram(
            "convserve_request_seconds",
            "Seconds from the request head to the last byte of the answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        images = Counter(
            "convserve_images_total",
            "Pictures by model and outcome: ok, or the code of the picture's error.",
            ("model", "outcome"),
            registry=registry,
        )
        stage_seconds = Histogram(
            "convserve_stage_seconds",
            "Seconds that a request's slowest picture spent in each stage.",
            ("model", "stage"),
            buckets=_SECONDS,
            registry=registry,
        )
        batch_size = Histogram(
            "convserve_batch_size",
            "Pictures in one run.",
            ("model",),
            buckets=_SIZES,
            registry=registry,
        )
        self.requests, self.images = cache(requests.labels), cache(images.labels)
        self.request_seconds = cache(request_seconds.labels)
        self.stage_seconds = cache(stage_seconds.labels)
        self.batch_size = cache(batch_size.labels)

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
            "convserve_lanes",
            "Lanes that work, or could: runs at the same time.",
            registry=registry,
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
        self.lane_restarts = Counter(
            "convserve_lane_restarts_total",
            "Lanes replaced, by reason: died or stuck (threads); not_started, exited, stopped, "
            "overdue, memory or terminated (processes).",
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

    def watch_lanes(self, ready: Callable[[], float]) -> None:
        """Reads the gauge of lanes from this function whenever metrics are collected."""
        self._lanes.set_function(ready)

    def watch_model(self, model: str, waiting: Callable[[], float]) -> None:
        """Reads the gauge of a model from this function whenever metrics are collected."""
        self._waiting.labels(model).set_function(waiting)

    def forget_model(self, model: str) -> None:
        """Drops the series of a model that is not served any more."""
        self._waiting.remove(model)
        self.lane_busy.remove(model)

    def show_models(self, served: Iterable[tuple[str, str, str, str]]) -> None:
        """Lists these in the model gauge (model, version, provider, fall-back) and no others."""
        self.model_info.clear()
        for labels in served:
            self.model_info.labels(*labels).set(1)

    def describe(self) -> list[MetricDescription]:
        """Describes every metric, for the reference page and the tests."""
        return [
            MetricDescription(
                metric._name + ("_total" if metric._type == "counter" else ""),
                metric._type or "",
                tuple(metric._labelnames),
                metric._documentation or "",
            )
            for metric in self._registry._collector_to_names
            if isinstance(metric, MetricWrapperBase)
        ]

    def render(self) -> bytes:
        """Returns all metrics in the Prometheus text format."""
        return generate_latest(self._registry)

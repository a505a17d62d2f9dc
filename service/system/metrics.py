"""All Prometheus metrics of the service.

Label values come from closed sets (route templates, status codes, served models, error codes), so
clients cannot create series.
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
    """One row of the metrics reference. `name` is as scraped, without a histogram's suffixes."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class Metrics:
    """The metrics of one application, in their own registry."""

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
            "Seconds from the request head to the last byte of the response.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        images = Counter(
            "convserve_images_total",
            "Pictures by model and outcome: ok, or the error code.",
            ("model", "outcome"),
            registry=registry,
        )
        stage_seconds = Histogram(
            "convserve_stage_seconds",
            "Seconds in each stage, for the slowest picture of a request.",
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

        # Every request touches these. `labels` takes a lock and costs more than counting, so its
        # results are cached. For this reason their series must never be removed.
        self.requests, self.images = cache(requests.labels), cache(images.labels)
        self.request_seconds = cache(request_seconds.labels)
        self.stage_seconds = cache(stage_seconds.labels)
        self.batch_size = cache(batch_size.labels)

        self.refused = Counter(
            "convserve_refused_total",
            "Requests refused with 503 or 504, by error code and by the limit that was reached.",
            ("code", "reason"),
            registry=registry,
        )
        self._in_flight = Gauge(
            "convserve_images_in_flight",
            "Pictures accepted but not answered yet.",
            registry=registry,
        )
        self._in_flight_bytes = Gauge(
            "convserve_upload_bytes_in_flight", "Bytes of uploads in memory.", registry=registry
        )
        self.lane_busy = Counter(
            "convserve_lane_busy_seconds_total",
            "Seconds that lanes were busy. Divided by time and number of lanes: their utilisation.",
            ("model",),
            registry=registry,
        )
        self._lanes = Gauge(
            "convserve_lanes",
            "Lanes that are ready or busy: the number of possible runs at the same time.",
            registry=registry,
        )
        self._waiting = Gauge(
            "convserve_images_waiting", "Pictures waiting for a run.", ("model",), registry=registry
        )
        self.model_info = Gauge(
            "convserve_model_info",
            "1 for each loaded version. provider_fallback is none, not_installed or failed.",
            ("model", "version", "provider", "provider_fallback"),
            registry=registry,
        )
        self.adoptions = Counter(
            "convserve_adoptions_total",
            "Changes to the model repository while serving: adopted, or failed once per version.",
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
            "Log records dropped because the reader of the log was too slow.",
            registry=registry,
        )

    def watch_in_flight(self, images: Callable[[], float], n_bytes: Callable[[], float]) -> None:
        # Gauges call these functions whenever metrics are collected.
        self._in_flight.set_function(images)
        self._in_flight_bytes.set_function(n_bytes)

    def watch_lanes(self, ready: Callable[[], float]) -> None:
        self._lanes.set_function(ready)

    def watch_model(self, model: str, waiting: Callable[[], float]) -> None:
        self._waiting.labels(model).set_function(waiting)

    def forget_model(self, model: str) -> None:
        """Removes the series of a model that is no longer served."""
        self._waiting.remove(model)
        self.lane_busy.remove(model)

    def show_models(self, served: Iterable[tuple[str, str, str, str]]) -> None:
        """Replaces the series of the model gauge: (model, version, provider, fallback) each."""
        self.model_info.clear()
        for labels in served:
            self.model_info.labels(*labels).set(1)

    def describe(self) -> list[MetricDescription]:
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
        return generate_latest(self._registry)

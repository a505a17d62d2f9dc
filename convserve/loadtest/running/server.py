"""What a server says about itself: its metrics and its models, where it has such routes."""

from __future__ import annotations

import http.client
import json
import math
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from convserve.loadtest.results import MetricChange, Server
from convserve.loadtest.sending.plan import Target

_TIMEOUT_S: Final = 2.0
_WHOLE_TIMEOUT_S: Final = 5.0
_MAX_BYTES: Final = 4 << 20
_MEMORY: Final = "process_resident_memory_bytes"
_KINDS: Final = ("counter", "gauge", "histogram")


@dataclass(frozen=True, slots=True)
class Scrape:
    """All series of a server's `/metrics`: (kind, value) by name and labels."""

    series: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    at_s: float = 0.0  # monotonic

    @property
    def memory_bytes(self) -> float | None:
        return self.series.get(_MEMORY, ("", None))[1]


class Observer:
    """Asks a server about itself. One that does not answer is asked no more."""

    def __init__(self, target: Target, headers: Iterable[tuple[str, str]]) -> None:
        self._target, self._headers = target, dict(headers)
        self._before = Scrape()
        self._software: str | None = None
        self._models: list[str] = []

    def begin(self) -> None:
        """Reads what there is before the load."""
        self._before = self.scrape()
        self._software = self._find_software()
        self._models = self._find_models()

    def end(self, memory: list[tuple[float, float]]) -> Server:
        """Reads the metrics once more and returns everything."""
        before = self._before
        after = self.scrape() if before.series else Scrape()
        return Server(
            software=self._software,
            models=self._models,
            memory_bytes=memory,
            metrics=changes(before, after),
            metrics_seconds=after.at_s - before.at_s if after.series else None,
        )

    def scrape(self) -> Scrape:
        text = self._get("/metrics")
        series = {}
        with suppress(ValueError):  # not Prometheus' format
            for family in text_string_to_metric_families(text or ""):
                kind = family.type if family.type in _KINDS else "other"
                for sample in family.samples:
                    series[_name(sample.name, sample.labels)] = (kind, float(sample.value))
        return Scrape(series, time.monotonic())

    def _find_software(self) -> str | None:
        for name in self._before.series:
            if name.startswith("convserve_build_info{"):
                found = name.partition('version="')[2].partition('"')[0]
                return f"convserve {found}"
        # The Open Inference Protocol's server metadata.
        metadata = self._json("/v2")
        if isinstance(metadata, dict) and isinstance(metadata.get("name"), str):
            return f"{metadata['name']} {metadata.get('version', '')}".strip()
        return None

    def _find_models(self) -> list[str]:
        listing = self._json("/v1/models")
        models = listing.get("models") if isinstance(listing, dict) else None
        found = []
        for model in models if isinstance(models, list) else ():
            if isinstance(model, dict) and "name" in model:
                version = model.get("version") or model.get("default_version")
                found.append(f"{model['name']}/{version}" if version else str(model["name"]))
            elif isinstance(model, str):
                found.append(model)
        return found

    def _json(self, path: str) -> Any:
        with suppress(ValueError):
            return json.loads(self._get(path) or "null")
        return None

    def _get(self, path: str) -> str | None:
        target = self._target
        connection: http.client.HTTPConnection
        if target.tls:
            context = ssl.create_default_context()
            if not target.verify:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection(
                target.host, target.port, timeout=_TIMEOUT_S, context=context
            )
        else:
            connection = http.client.HTTPConnection(target.host, target.port, timeout=_TIMEOUT_S)

        try:
            connection.connect()
            with _ending(connection.sock):
                connection.request("GET", path, headers=self._headers)
                answer = connection.getresponse()
                text = answer.read(_MAX_BYTES).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return text if answer.status == 200 else None


@contextmanager
def _ending(sock: socket.socket) -> Iterator[None]:
    """Ends a connection that takes too long altogether: its timeout is for each single read."""

    def end() -> None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(_WHOLE_TIMEOUT_S, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def changes(before: Scrape, after: Scrape) -> list[MetricChange]:
    """Returns the series that are not 0 at both times."""
    found = []
    for name, (kind, value) in after.series.items():
        earlier = before.series.get(name, (kind, 0.0))[1]
        # JSON has no NaN and no infinity.
        if (value or earlier) and math.isfinite(value) and math.isfinite(earlier):
            found.append(MetricChange(name=name, kind=kind, before=earlier, after=value))
    return found


def _name(name: str, labels: Mapping[str, str]) -> str:
    if not labels:
        return name
    inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inside}}}"

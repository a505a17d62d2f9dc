from __future__ import annotations

import math
import platform
import re
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from fastapi.routing import APIRoute

from contract.errors import ImageError
from service.app import ROUTERS
from service.batching.lane import RestartReason
from service.errors import REFUSALS, ServiceError, Unavailable
from service.http.problems import PROBLEMS
from service.system.cpus import usable_cpus
from service.system.metrics import Metrics
from service.system.pacing import Allowance
from service.system.version import package_version
from tests import tinymodel
from tests.fakes import FakeClock
from tests.pictures import HOSTILE
from tests.service.running import batcher_of, lose_lanes

RED = tinymodel.picture("red")
NEWEST = {"model": "tiny", "version": "2"}
MAX_SERIES = 1500  # with three models
DESCRIBED = {one.name: one for one in Metrics().describe()}


def value(client, name: str, **labels: str) -> float:
    """The value of one series; fails if there is no such series."""
    found = find(client, name, **labels)
    assert found is not None, (name, labels)
    return found


def find(client, name: str, **labels: str) -> float | None:
    registry = client.app.state.service.metrics._registry
    found: float | None = registry.get_sample_value(name, labels)
    return found


def series(client) -> set[str]:
    lines = client.get("/metrics").text.splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


@pytest.mark.parametrize("name", DESCRIBED)
def test_metrics_name_kind_and_help_follow_the_rules(name):
    described = DESCRIBED[name]

    assert re.fullmatch(r"(convserve|process)_[a-z_]+", name)
    assert name.endswith("_total") == (described.kind == "counter")
    assert described.help.endswith(".")


def test_metrics_page_shows_every_metric_and_no_other(fresh_client):
    fresh_client.post("/v1/classify", content=RED)
    fresh_client.app.state.service.begin_drain()
    fresh_client.get("/readyz")

    page = fresh_client.get("/metrics")

    names = {line.split()[2] for line in page.text.splitlines() if line.startswith("# TYPE")}
    assert names == set(DESCRIBED)
    assert page.headers["content-type"].startswith("text/plain; version=")


def test_metrics_pictures_counted_by_outcome(fresh_client):
    fresh_client.post("/v1/classify", content=RED)
    fresh_client.post("/v1/classify", content=b"x")
    fresh_client.post("/v1/classify", files=[("a", RED), ("b", RED), ("c", b"x")])

    counts = {
        outcome: value(fresh_client, "convserve_images_total", **NEWEST, outcome=outcome)
        for outcome in ("ok", "unsupported_media_type", "image_truncated")
    }
    assert counts == {"ok": 3, "unsupported_media_type": 2, "image_truncated": 0}


def test_metrics_traffic_carries_the_version(make_client):
    client = make_client(repository_file=tinymodel.LOAD_ALL)
    client.post("/v1/models/tiny/versions/1/classify", content=RED)
    for _ in range(2):
        client.post("/v1/classify", content=RED)

    counts = [
        value(client, name, model="tiny", version=version, **labels)
        for version in ("1", "2")
        for name, labels in (
            ("convserve_images_total", {"outcome": "ok"}),
            ("convserve_stage_seconds_count", {"stage": "infer"}),
            ("convserve_batch_size_sum", {}),
        )
    ]
    assert counts == [1, 1, 1, 2, 2, 2]


def test_metrics_stages_and_batches_observed_once_per_run(fresh_client):
    for _ in range(3):
        fresh_client.post("/v1/classify", content=RED)

    stages = [
        value(fresh_client, "convserve_stage_seconds_count", **NEWEST, stage=stage)
        for stage in ("receive", "decode", "preprocess", "queue", "infer", "rank")
    ]
    assert stages == [3] * 6
    assert value(fresh_client, "convserve_batch_size_sum", **NEWEST) == 3


def test_metrics_request_without_good_picture_observes_no_stage(fresh_client):
    fresh_client.post("/v1/classify", content=b"x")

    assert value(fresh_client, "convserve_stage_seconds_count", **NEWEST, stage="infer") == 0


def test_metrics_refusals_counted_by_code(make_client):
    client = make_client(max_in_flight=1)
    client.app.state.dependencies.admission.slot().add_images(1)

    client.post("/v1/classify", content=RED)
    client.app.state.dependencies.admission.closed = True
    client.post("/v1/classify", content=RED)
    client.post("/v1/models/none/classify", content=RED)

    counts = {
        code: find(client, "convserve_refused_total", code=code, reason=reason)
        for code, reason in (
            ("overloaded", "images"),
            ("draining", "draining"),
            ("model_not_found", "model_not_found"),
        )
    }
    assert counts == {"overloaded": 1, "draining": 1, "model_not_found": None}


def test_metrics_in_flight_gauges_follow_admission(fresh_client):
    with fresh_client.app.state.dependencies.admission.slot() as slot:
        slot.add_images(3)
        slot.add_bytes(77)
        during = fresh_client.get("/metrics").text

    assert "convserve_images_in_flight 3.0" in during
    assert "convserve_upload_bytes_in_flight 77.0" in during
    assert "convserve_images_in_flight 0.0" in fresh_client.get("/metrics").text


def test_metrics_model_info_names_every_version(make_client):
    client = make_client(repository_file=tinymodel.LOAD_ALL, provider="cpu")

    for version in ("1", "2"):
        labels = {"model": "tiny", "version": version, "provider": "cpu"}
        assert value(client, "convserve_model_info", provider_fallback="none", **labels) == 1


def test_metrics_waiting_pictures_are_counted_by_version(make_client):
    client = make_client(repository_file=tinymodel.LOAD_ALL)
    for number, version in enumerate(client.app.state.service.repository.versions()):
        batcher_of(client)._queue_of(version).n_pending = 5 + number

    waiting = [
        value(client, "convserve_images_waiting", model="tiny", version=version)
        for version in ("1", "2")
    ]

    assert waiting == [5, 6]


@pytest.mark.parametrize("lanes", [1, 3])
def test_metrics_lanes_gauge_counts_only_live_lanes(make_client, lanes):
    client = make_client(lanes=lanes)
    ready = value(client, "convserve_lanes")
    next(iter(batcher_of(client)._lanes)).dead = True

    assert (ready, value(client, "convserve_lanes")) == (lanes, lanes - 1)
    assert value(client, "convserve_lanes_configured") == lanes


def test_metrics_ready_gauge_agrees_with_readyz(fresh_client):
    ready = value(fresh_client, "convserve_ready")
    fresh_client.app.state.service.begin_drain()

    draining = value(fresh_client, "convserve_ready")

    assert (ready, draining, fresh_client.get("/readyz").status_code) == (1, 0, 503)


def test_metrics_build_info_names_the_versions(client):
    labels = {
        "version": package_version(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }

    assert value(client, "convserve_build_info", **labels) == 1


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")
def test_metrics_of_the_process_are_there(client):
    names = [name for name in DESCRIBED if name.startswith("process_")]

    assert "process_resident_memory_bytes" in names
    assert all(value(client, name) for name in names)
    assert 0 < value(client, "convserve_memory_used_bytes") < math.inf
    assert value(client, "convserve_cpus") == usable_cpus()


def test_metrics_of_worker_processes_are_there(make_client):
    client = make_client(workers=1, provider="cpu")

    assert value(client, "convserve_workers_resident_memory_bytes") > 1_000_000
    assert value(client, "convserve_workers_cpu_seconds_total") > 0


def test_metrics_time_of_busy_lanes_counted_in_seconds(fresh_client):
    before = value(fresh_client, "convserve_lane_busy_seconds_total", **NEWEST)
    fresh_client.post("/v1/classify", content=RED)

    busy_s = value(fresh_client, "convserve_lane_busy_seconds_total", **NEWEST)
    run_s = value(fresh_client, "convserve_stage_seconds_sum", **NEWEST, stage="infer")
    assert before == 0
    assert busy_s >= run_s > 0


def test_metrics_lanes_replaced_counted_by_reason(fresh_client):
    batcher = batcher_of(fresh_client)
    for reason in (RestartReason.DIED, RestartReason.EXITED, RestartReason.EXITED):
        batcher._callbacks.on_replaced(reason)

    counts = [
        value(fresh_client, "convserve_lane_restarts_total", reason=reason.value)
        for reason in (RestartReason.DIED, RestartReason.EXITED, RestartReason.STUCK)
    ]
    assert counts == [1, 2, 0]


def test_metrics_dropped_log_records_are_counted():
    metrics = Metrics()

    metrics.log_records_dropped.inc()

    assert b"convserve_log_records_dropped_total 1.0" in metrics.render()


def test_metrics_errors_counted_by_code_without_health_checks(fresh_client):
    fresh_client.post("/v1/classify", content=b"x")
    fresh_client.post("/v1/models/none/classify", content=RED)
    fresh_client.get("/nothing")
    fresh_client.app.state.service.begin_drain()
    fresh_client.get("/readyz")

    errors = counted(fresh_client, "convserve_request_errors_total")
    assert errors == {"unsupported_media_type": 1, "model_not_found": 1, "not_found": 1}
    assert counted(fresh_client, "convserve_refused_total") == {}


def counted(client, name: str) -> dict[str, float]:
    """The values above 0 of a counter, by error code."""
    return {
        sample.labels["code"]: sample.value
        for metric in client.app.state.service.metrics._registry.collect()
        for sample in metric.samples
        if sample.name == name and sample.value
    }


# Which series there are


def codes_of(base: type[Any]) -> set[str]:
    """The codes of all subclasses of the package."""
    ours = [one for one in base.__subclasses__() if not one.__module__.startswith("tests")]
    return {one.code for one in ours if "code" in vars(one)}.union(*map(codes_of, ours))


@pytest.mark.parametrize("name", [name for name, one in DESCRIBED.items() if one.labels])
def test_metrics_labelled_series_exist_before_the_first_event(fresh_client, name):
    kind = DESCRIBED[name].kind
    sample = name + "_count" if kind == "histogram" else name

    values = [one.rpartition(" ")[2] for one in lines_of(fresh_client) if one.startswith(sample)]

    assert values
    if kind != "gauge":
        assert set(values) == {"0.0"}


def lines_of(client) -> list[str]:
    # Without a request, which would count.
    metrics: Metrics = client.app.state.service.metrics
    return metrics.render().decode().splitlines()


def test_metrics_every_error_code_has_its_series(client):
    pictures = codes_of(ImageError) | {"ok", "worker_lost", "internal_error", "malformed_request"}
    admin = {code for code, problem in PROBLEMS.items() if problem.admin}
    requests = (codes_of(ImageError) | codes_of(ServiceError) | set(PROBLEMS)) - admin

    assert {
        find(client, "convserve_images_total", **NEWEST, outcome=code) is None for code in pictures
    } == {False}
    assert {
        find(client, "convserve_request_errors_total", code=code) is None for code in requests
    } == {False}


def test_metrics_every_refusal_has_its_series(client):
    assert {code for code, _ in REFUSALS} == codes_of(Unavailable) | {"deadline_exceeded"}
    assert {
        find(client, "convserve_refused_total", code=code, reason=reason) is None
        for code, reason in REFUSALS
    } == {False}


def test_metrics_undeclared_statuses_are_counted_in_their_class(fresh_client):
    metrics = fresh_client.app.state.service.metrics
    before = series(fresh_client)

    for status in (201, 304, 418, 451, 507, 599, 0, 1000):
        metrics.count_request("/livez", status, 0.0)

    counts = [
        value(fresh_client, "convserve_requests_total", route="/livez", status=status)
        for status in ("2xx", "3xx", "4xx", "5xx")
    ]
    assert counts == [1, 1, 2, 4]
    assert series(fresh_client) == before


def test_metrics_series_stay_the_same_under_hostile_traffic(make_client, tmp_path):
    for name in ("one", "two", "three"):
        tinymodel.write_version(tmp_path, name=name)
    client = make_client(models_dir=tmp_path, max_body_bytes=100_000, max_image_pixels=100_000)
    before = series(client)

    send_hostile_traffic(client)

    assert series(client) == before
    assert len(before) <= MAX_SERIES


def send_hostile_traffic(client) -> None:
    """Good, broken, malicious and refused requests, on every route and on none."""
    routes = [route for router in ROUTERS for route in router.routes]
    paths = [route.path for route in routes if isinstance(route, APIRoute)]
    for path in (*paths, "/docs", "/openapi.json", "/docs/assets/{name}", "/", "/{name}", "//"):
        for name, version in (("one", "1"), ("none", "9"), ("x" * 300, "-1"), ("%00", "é")):
            target = path.replace("{name}", name).replace("{version}", version)
            for method in ("GET", "POST", "HEAD", "DELETE", "OPTIONS", "BREW"):
                client.request(method, target, content=RED if method == "POST" else None)

    pictures = [
        hostile.data for hostile in list(HOSTILE.values())[::7] if len(hostile.data) < 90_000
    ]
    for start in range(0, len(pictures), 8):
        client.post(
            "/v1/models/two/classify",
            files=[("a", RED), *(("b", data) for data in pictures[start : start + 8])],
        )
    for picture in pictures[:20]:
        client.post("/v1/classify", content=picture)
    for headers in ({"x-request-timeout-ms": "1e-9"}, {"content-type": "text/html"}):
        client.post("/v1/classify", content=RED, headers=headers)
    client.post("/v1/classify?top_k=x", content=RED)
    client.post("/v1/classify", content=bytes(200_000))
    client.post("/v1/classify", content=b"{", headers={"content-type": "application/json"})

    admission = client.app.state.dependencies.admission
    admission.images = 10_000
    client.post("/v1/classify", content=RED)
    admission.images = 0
    lose_lanes(client)
    client.post("/v1/classify", content=RED)
    client.get("/readyz")
    client.app.state.service.begin_drain()
    client.get("/readyz")


def test_metrics_codes_used_as_labels_are_plain_identifiers():
    assert all(re.fullmatch(r"[a-z_]+", code) for code in codes_of(ServiceError))


def test_metrics_page_is_rendered_at_a_bounded_rate(monkeypatch):
    clock = FakeClock()
    metrics = Metrics()
    metrics._pages = Allowance(2, 10, clock)
    rendered: list[bytes] = []

    def render() -> bytes:
        rendered.append(b"page %d" % len(rendered))
        return rendered[-1]

    monkeypatch.setattr(metrics, "render", render)
    at_once = [metrics.page() for _ in range(4)]
    clock.advance(0.1)
    later = [metrics.page() for _ in range(2)]

    assert at_once == [b"page 0", b"page 1", b"page 1", b"page 1"]
    assert later == [b"page 2", b"page 2"]

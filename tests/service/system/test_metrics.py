from __future__ import annotations

import re

import pytest

from service.batching.lane import RestartReason
from service.errors import ServiceError
from service.system.metrics import Metrics
from tests import tinymodel
from tests.service.running import batcher_of

RED = tinymodel.picture("red")
DESCRIBED = {one.name: one for one in Metrics().describe()}


def value(client, name: str, **labels: str) -> float | None:
    registry = client.app.state.service.metrics._registry
    found: float | None = registry.get_sample_value(name, labels)
    return found


@pytest.mark.parametrize("name", DESCRIBED)
def test_metrics_name_kind_and_help_follow_the_rules(name):
    described = DESCRIBED[name]

    assert re.fullmatch(r"convserve_[a-z_]+", name)
    assert name.endswith("_total") == (described.kind == "counter")
    assert described.help.endswith(".")


def test_metrics_page_shows_every_metric_and_no_other(fresh_client):
    fresh_client.post("/v1/classify", content=RED)
    fresh_client.app.state.service.begin_drain()
    fresh_client.get("/readyz")

    page = fresh_client.get("/metrics")

    names = {line.split()[2] for line in page.text.splitlines() if line.startswith("# TYPE")}
    created = {name for name in names if name.endswith("_created")}
    assert names - created == set(DESCRIBED)
    assert page.headers["content-type"].startswith("text/plain; version=")


def test_metrics_pictures_counted_by_outcome(fresh_client):
    fresh_client.post("/v1/classify", content=RED)
    fresh_client.post("/v1/classify", content=b"x")
    fresh_client.post("/v1/classify", files=[("a", RED), ("b", RED), ("c", b"x")])

    counts = {
        outcome: value(fresh_client, "convserve_images_total", model="tiny", outcome=outcome)
        for outcome in ("ok", "unsupported_media_type")
    }
    assert counts == {"ok": 3, "unsupported_media_type": 2}


def test_metrics_stages_and_batches_observed_once_per_run(fresh_client):
    for _ in range(3):
        fresh_client.post("/v1/classify", content=RED)

    stages = [
        value(fresh_client, "convserve_stage_seconds_count", model="tiny", stage=stage)
        for stage in ("receive", "decode", "preprocess", "queue", "infer", "rank")
    ]
    assert stages == [3] * 6
    assert value(fresh_client, "convserve_batch_size_sum", model="tiny") == 3


def test_metrics_request_without_good_picture_observes_no_stage(fresh_client):
    fresh_client.post("/v1/classify", content=b"x")

    assert value(fresh_client, "convserve_stage_seconds_count", model="tiny", stage="infer") is None


def test_metrics_refusals_counted_by_code(make_client):
    client = make_client(max_in_flight=1)
    client.app.state.dependencies.admission.reserve(images=1, n_bytes=0)

    client.post("/v1/classify", content=RED)
    client.app.state.dependencies.admission.closed = True
    client.post("/v1/classify", content=RED)
    client.post("/v1/models/none/classify", content=RED)

    counts = {
        code: value(client, "convserve_refused_total", code=code, reason=reason)
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
    client = make_client(versions_per_model=0, provider="cpu")

    for version in ("1", "2"):
        labels = {"model": "tiny", "version": version, "provider": "cpu"}
        assert value(client, "convserve_model_info", provider_fallback="none", **labels) == 1


def test_metrics_waiting_pictures_are_summed_over_versions(make_client):
    client = make_client(versions_per_model=0)
    for version in client.app.state.service.repository.versions():
        batcher_of(client)._queue_of(version).n_pending = 2

    text = client.get("/metrics").text

    assert 'convserve_images_waiting{model="tiny"} 4.0' in text


@pytest.mark.parametrize("lanes", [1, 3])
def test_metrics_lanes_gauge_counts_only_live_lanes(make_client, lanes):
    client = make_client(lanes=lanes)
    ready = value(client, "convserve_lanes")
    next(iter(batcher_of(client)._lanes)).dead = True

    assert (ready, value(client, "convserve_lanes")) == (lanes, lanes - 1)


def test_metrics_time_of_busy_lanes_counted_in_seconds(fresh_client):
    before = value(fresh_client, "convserve_lane_busy_seconds_total", model="tiny")
    fresh_client.post("/v1/classify", content=RED)

    busy_s = value(fresh_client, "convserve_lane_busy_seconds_total", model="tiny")
    run_s = value(fresh_client, "convserve_stage_seconds_sum", model="tiny", stage="infer")
    assert not before
    assert busy_s
    assert run_s
    assert busy_s >= run_s > 0


def test_metrics_lanes_replaced_counted_by_reason(fresh_client):
    batcher = batcher_of(fresh_client)
    for reason in (RestartReason.DIED, RestartReason.EXITED, RestartReason.EXITED):
        batcher._callbacks.on_replaced(reason)

    counts = [
        value(fresh_client, "convserve_lane_restarts_total", reason=reason.value)
        for reason in (RestartReason.DIED, RestartReason.EXITED, RestartReason.STUCK)
    ]
    assert counts == [1, 2, None]


def test_metrics_dropped_log_records_are_counted():
    metrics = Metrics()

    metrics.log_records_dropped.inc()

    assert b"convserve_log_records_dropped_total 1.0" in metrics.render()


def test_metrics_codes_used_as_labels_are_plain_identifiers():
    def codes(base: type[ServiceError]) -> set[str]:
        return {
            c for one in base.__subclasses__() for c in ({getattr(one, "code", "")} | codes(one))
        }

    assert all(re.fullmatch(r"[a-z_]*", code) for code in codes(ServiceError))

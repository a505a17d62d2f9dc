from __future__ import annotations

import math

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.settings import Settings
from tests import tinymodel
from tests.problems import assert_problem
from tests.service.running import PictureEngine, batcher_of, lose_lanes, occupy

RED = tinymodel.picture("red")


@pytest.mark.parametrize(("path", "status"), [("/livez", "alive"), ("/readyz", "ready")])
def test_health_started_service_passes(client, path, status):
    response = client.get(path)

    assert (response.status_code, response.json()) == (200, {"status": status})


def test_readyz_before_start_not_ready_but_alive(models_dir):
    client = TestClient(create_app(Settings(models_dir=models_dir, lanes=1)))

    ready, live = client.get("/readyz"), client.get("/livez")

    assert_problem(ready, 503, "model_not_ready")
    assert live.status_code == 200


def test_classify_before_start_not_ready(models_dir):
    client = TestClient(create_app(Settings(models_dir=models_dir, lanes=1)))

    assert_problem(client.post("/v1/classify", content=RED), 503, "model_not_ready")


def test_readyz_draining_fails_while_classify_still_works(fresh_client):
    fresh_client.app.state.service.begin_drain()

    ready, answer, live = (
        fresh_client.get("/readyz"),
        fresh_client.post("/v1/classify", content=RED),
        fresh_client.get("/livez"),
    )

    assert_problem(ready, 503, "draining")
    assert answer.json()["predictions"][0]["label"] == "red"
    assert live.status_code == 200


@pytest.mark.parametrize("path", ["/readyz", "/livez", "/v1/models", "/nothing"])
def test_draining_every_response_closes_the_connection(fresh_client, path):
    before = fresh_client.get(path).headers
    fresh_client.app.state.service.begin_drain()

    after = fresh_client.get(path).headers

    assert ("connection" in before, after.get_list("connection")) == (False, ["close"])


def test_readyz_draining_counted_with_its_status(fresh_client):
    fresh_client.app.state.service.begin_drain()
    fresh_client.get("/readyz")

    assert (
        'convserve_requests_total{route="/readyz",status="503"} 1.0'
        in fresh_client.get("/metrics").text
    )


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_stuck_lane_fails_until_it_recovers(fresh_client, path):
    engine = PictureEngine()
    running = occupy(fresh_client, engine)
    busy = fresh_client.get(path).status_code
    (lane,) = batcher_of(fresh_client)._lanes
    lane.jobs[0].due_s = -math.inf

    stuck = fresh_client.get(path)
    engine.release()
    running.exception(5)  # the result or an interruption: the lane is moving again

    assert busy == 200
    assert_problem(stuck, 503, "model_not_ready")
    assert fresh_client.post("/v1/classify", content=RED).status_code == 200
    assert fresh_client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_fails_while_all_lanes_are_lost(fresh_client, path):
    lose_lanes(fresh_client)

    response = fresh_client.get(path)

    assert_problem(response, 503, "model_not_ready")
    assert_problem(fresh_client.post("/v1/classify", content=RED), 503, "model_not_ready")


def test_health_after_stop_not_ready(models_dir):
    app = create_app(Settings(models_dir=models_dir, lanes=1))
    with TestClient(app):
        pass

    client = TestClient(app)

    assert_problem(client.get("/readyz"), 503, "draining")
    assert_problem(client.post("/v1/classify", content=RED), 503, "draining")

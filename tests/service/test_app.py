from __future__ import annotations

import asyncio
import base64
import logging
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from starlette.routing import Route
from starlette.testclient import TestClient

from contract.errors import NothingToServe
from service import app as app_module
from service import running
from service.api import docs
from service.app import ROUTERS, create_app
from service.models import repository as repository_module
from service.models.providers import ProviderSession, open_session
from service.models.repository import EngineConfig, Repository
from service.models.watcher import RepositoryWatcher
from service.settings import Settings
from tests import tinymodel
from tests.fakes import FakeEngine
from tests.problems import assert_problem
from tests.service.asgi import call_and_disconnect
from tests.service.running import PictureEngine, batcher_of, occupy, use_engine

ROOT = Path(__file__).parents[2]
RED, GREEN, BLUE = (tinymodel.picture(colour) for colour in tinymodel.LABELS)

ALLOWED_IMPORTS = {
    "PIL",
    "annotated_doc",
    "annotated_types",
    "anyio",
    "contract",
    "cykooz_resizer",
    "cython_runtime",  # of simplejpeg
    "fastapi",
    "fastapi_offline",
    "idna",
    "numpy",
    "onnxruntime",
    "opentelemetry",
    "prometheus_client",
    "pydantic",
    "pydantic_core",
    "python_multipart",
    "service",
    "simplejpeg",
    "sniffio",
    "starlette",
    "typing_extensions",
    "typing_inspection",
}


def run_python(code: str) -> str:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_app_import_loads_only_allowed_packages():
    code = "import sys, service.app; print(*{name.partition('.')[0] for name in sys.modules})"

    loaded = set(run_python(code).split()) - sys.stdlib_module_names

    ours = {name for name in loaded if not name.startswith("_")}
    assert ours <= ALLOWED_IMPORTS
    assert "onnxruntime" not in ours


def test_app_import_has_no_side_effects():
    code = (
        "import os, threading, logging; before = dict(os.environ); import service.app, "
        "convserve.__main__, service.http.server; print(threading.active_count(), "
        "logging.getLogger().handlers, before == dict(os.environ))"
    )

    assert run_python(code).split() == ["1", "[]", "True"]


def test_app_every_router_is_mounted(fresh_client):
    paths = set(fresh_client.get("/openapi.json").json()["paths"])

    assert paths == {route.path for router in ROUTERS for route in router.routes}  # type: ignore[attr-defined]


def test_app_public_port_changes_nothing(make_client):
    app = make_client(docs=True).app
    routers = [*ROUTERS, docs.router]
    routes = [*app.routes, *(route for router in routers for route in router.routes)]

    writing = {
        (method, route.path)
        for route in routes
        if isinstance(route, Route)
        for method in (route.methods or {"any"}) - {"GET", "HEAD"}
    }

    others = [route for route in routes if not isinstance(route, Route)]
    assert len(others) == len(routers)  # nothing else is mounted
    assert writing == {
        ("POST", "/v1/classify"),
        ("POST", "/v1/models/{name}/classify"),
        ("POST", "/v1/models/{name}/versions/{version}/classify"),
    }


@pytest.mark.parametrize("path", ["models", "changes", "reload", "default", "models/tiny/pin"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_app_public_port_does_not_have_the_admin_routes(client, method, path):
    assert client.request(method, f"/v1/admin/{path}").status_code == 404


def test_app_with_a_corrupt_model_is_not_created(tmp_path):
    tinymodel.write_version(tmp_path)
    (tmp_path / "tiny" / "1" / "model.onnx").write_bytes(b"x")

    with pytest.raises(NothingToServe, match=r"tiny/1: model\.onnx"):
        create_app(Settings(models_dir=tmp_path))


def test_app_with_a_missing_provider_is_not_created(models_dir):
    with pytest.raises(NothingToServe, match="cuda"):
        create_app(Settings(models_dir=models_dir, provider="cuda"))


def test_app_finds_models_in_the_working_directory(tmp_path):
    tinymodel.write_version(tmp_path / "models")

    app = create_app(Settings(), working_dir=tmp_path)

    assert app.state.service.repository.default_name == "tiny"


def test_app_settings_reach_the_batcher(models_dir):
    settings = Settings(
        models_dir=models_dir, lanes=3, max_batch_size=3, max_wait_ms=7, max_in_flight=9
    )

    service = create_app(settings).state.service

    limits = service._backend.batcher.limits
    assert (limits.lanes, limits.max_wait_s, limits.max_queue) == (3, 0.007, 9)
    assert service.repository.get("tiny").max_batch_size == 3


@pytest.mark.parametrize(("cpus", "threads"), [(8, 4), (1, 1)], ids=["many", "one"])
def test_app_lanes_and_prepare_pool_are_sized_by_the_cores(models_dir, monkeypatch, cpus, threads):
    monkeypatch.setattr(app_module, "usable_cpus", lambda: cpus)

    backend = create_app(Settings(models_dir=models_dir, provider="cpu")).state.service._backend

    assert (backend.batcher.limits.lanes, backend._kind.prepare_pool._max_workers) == (
        cpus,
        threads,
    )


def test_app_timeouts_reach_the_deadlines(models_dir):
    settings = Settings(models_dir=models_dir, request_timeout_s=7)

    deadlines = create_app(settings).state.dependencies.deadlines

    assert (deadlines.default_s, deadlines.max_s) == (7, 300)


@pytest.mark.parametrize(
    ("cpus", "expected"), [(4, [(1, False), (4, True)]), (1, [(1, False)])], ids=["many", "one"]
)
def test_app_wide_sessions_are_opened_only_with_several_cores(
    tmp_path, monkeypatch, cpus, expected
):
    tinymodel.write_version(tmp_path)
    opened: list[tuple[int, bool]] = []

    def record_and_open(
        graph: bytes, name: str, *, threads: int, spinning: bool = False
    ) -> ProviderSession:
        opened.append((threads, spinning))
        return open_session(graph, name, threads=threads, spinning=spinning)

    monkeypatch.setattr(app_module, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(repository_module, "open_session", record_and_open)
    create_app(Settings(models_dir=tmp_path, provider="cpu"))

    assert opened == expected


def test_app_image_limit_reaches_the_decoder(make_client):
    response = make_client(max_image_pixels=10).post("/v1/classify", content=RED)

    assert_problem(response, 422, "image_too_many_pixels")


@pytest.mark.parametrize(
    "request_of",
    [
        lambda picture: {"content": picture},
        lambda picture: {"files": {"file": picture}},
        lambda picture: {"json": {"image": base64.b64encode(picture).decode()}},
    ],
    ids=["raw", "form", "json"],
)
def test_app_format_that_is_switched_off_is_refused_however_it_comes(make_client, request_of):
    client = make_client(image_formats="png")
    bmp = tinymodel.picture("red", file_format="BMP")

    refused = client.post("/v1/classify", **request_of(bmp))

    assert_problem(refused, 415, "unsupported_media_type")
    assert "BMP, which is switched off on the server; accepted are PNG" in refused.json()["detail"]
    assert client.post("/v1/classify", **request_of(RED)).status_code == 200


@pytest.mark.parametrize("batch", [None, 1], ids=["any_batch", "one_per_run"])
def test_app_concurrent_requests_get_their_own_answers(make_client, tmp_path, batch):
    tinymodel.write_version(tmp_path, batch=batch)
    client = make_client(models_dir=tmp_path, lanes=2)
    pictures = {"red": RED, "green": GREEN, "blue": BLUE}

    def classify(colour: str) -> str:
        answer = client.post("/v1/classify?top_k=1", content=pictures[colour]).json()
        label: str = answer["predictions"][0]["label"]
        return label

    colours = [*pictures] * 20
    with ThreadPoolExecutor(8) as pool:
        labels = list(pool.map(classify, colours))

    assert labels == colours


def test_app_fixed_batch_graph_answers_several_pictures_in_order(make_client, tmp_path):
    tinymodel.write_version(tmp_path, batch=1)
    files = [("image", picture) for picture in (RED, GREEN, BLUE) * 10]

    response = make_client(models_dir=tmp_path).post("/v1/classify", files=files)

    tops = [result["predictions"][0]["label"] for result in response.json()["results"]]
    assert tops == [*tinymodel.LABELS] * 10


def test_app_engine_that_fails_answers_internal_error(fresh_client, caplog):
    engine = PictureEngine()
    engine.answer = lambda _batch: 1 / 0  # type: ignore[assignment,return-value]
    use_engine(fresh_client.app.state.service, engine)

    response = fresh_client.post("/v1/classify", content=RED)

    assert_problem(response, 500, "internal_error")
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1


def test_app_disconnect_removes_the_picture_from_the_queue(make_client):
    fresh_client = make_client(max_batch_size=8)
    engine, batcher = PictureEngine(), batcher_of(fresh_client)
    held = occupy(fresh_client, engine)

    sent = fresh_client.portal.call(
        call_and_disconnect, fresh_client.app, RED, lambda: batcher.waiting
    )

    engine.release()
    held.result(5)
    assert (sent, batcher.waiting, len(engine.batches)) == ([], 0, 1)
    assert fresh_client.app.state.dependencies.admission.images == 0


def test_app_stop_with_a_blocked_engine_gives_up_in_time_and_logs_it(
    models_dir, monkeypatch, caplog
):
    monkeypatch.setattr(running, "_STOP_S", 0.01)
    app = create_app(Settings(models_dir=models_dir, lanes=1, grace_s=1))
    engine = FakeEngine()
    engine.hold()
    service = app.state.service
    use_engine(service, engine)

    async def stop_during_a_run() -> object:
        service.start()
        version, row = service.repository.get(), np.array([0.5], np.float32)
        task = asyncio.create_task(service._backend.batcher.submit(version, row, math.inf))
        await asyncio.to_thread(engine.entered.acquire)
        await service.stop()
        return (await asyncio.gather(task, return_exceptions=True))[0]

    outcome = asyncio.run(stop_during_a_run())

    engine.release()
    assert type(outcome).__name__ == "EngineFailure"
    assert any(record.levelno == logging.ERROR for record in caplog.records)


def test_app_stop_ends_its_threads(models_dir):
    app = create_app(Settings(models_dir=models_dir, lanes=2))
    with TestClient(app) as client:
        client.post("/v1/classify", content=RED)

    lanes = list(app.state.service._backend.batcher._lanes)
    for lane in lanes:
        lane._thread.join(30)

    assert [lane._thread.is_alive() for lane in lanes] == [False, False]


# With worker processes


def test_app_with_workers_classifies_and_reports_them(make_client):
    client = make_client(workers=2, provider="cpu", repository_file=tinymodel.LOAD_ALL)

    answer = client.post("/v1/classify", content=RED)
    health = [client.get(path).status_code for path in ("/readyz", "/livez")]
    detail = client.get("/v1/models/tiny").json()
    metrics = client.get("/metrics").text

    assert answer.json()["predictions"][0]["label"] == "red"
    assert (health, detail["provider"], detail["ready"]) == ([200, 200], "cpu", True)
    assert "convserve_lanes 2.0" in metrics
    assert 'convserve_batch_size_count{model="tiny",version="2"} 1' in metrics


def test_app_with_workers_opens_no_session_itself(models_dir, monkeypatch):
    monkeypatch.setattr(repository_module, "open_session", None)

    app = create_app(Settings(models_dir=models_dir, workers=1, provider="cpu"))
    with TestClient(app) as client:
        answer = client.post("/v1/classify", content=RED)

    assert answer.json()["predictions"][0]["label"] == "red"


def test_app_stop_ends_its_workers(models_dir):
    app = create_app(Settings(models_dir=models_dir, workers=2, provider="cpu"))
    workers = [one.process for one in app.state.service._backend._kind.factory._ready]
    with TestClient(app) as client:
        client.post("/v1/classify", content=RED)

    assert [worker.poll() for worker in workers] == [0, 0]


def test_app_with_workers_starts_new_ones_for_adopted_versions(make_client, tmp_path):
    tinymodel.write_version(tmp_path)
    client = make_client(models_dir=tmp_path, workers=1, provider="cpu", models_poll_s=0)
    service = client.app.state.service
    tinymodel.write_version(tmp_path, version=2)
    version = service.load(tmp_path, "tiny", 2, EngineConfig("cpu"))

    client.portal.call(service.adopt, Repository([version]))

    assert client.post("/v1/classify", content=RED).json()["version"] == "2"
    assert "convserve_lanes 1.0" in client.get("/metrics").text


@pytest.mark.parametrize(
    "requested", [True, False], ids=["requested_before_start", "not_requested"]
)
def test_app_polls_after_the_start_if_requested_before_it(models_dir, monkeypatch, requested):
    polls = []
    monkeypatch.setattr(RepositoryWatcher, "poll_soon", lambda _: polls.append(1))
    app = create_app(Settings(models_dir=models_dir, models_poll_s=0))
    if requested:
        app.state.service.poll_repository()

    with TestClient(app):
        pass

    assert polls == [1] * requested

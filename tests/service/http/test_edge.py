from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from contract.errors import GraphMismatch
from service.errors import Overloaded
from service.http.edge import EdgeMiddleware
from service.system.metrics import Metrics
from tests import tinymodel
from tests.problems import MARKER, assert_problem
from tests.service.asgi import call

RED = tinymodel.picture("red")


def client_of(app: Any, draining: bool = False) -> TestClient:
    """A client of an application behind the edge middleware."""
    return TestClient(EdgeMiddleware(app, Metrics(), draining=lambda: draining))


@pytest.mark.parametrize("draining", [False, True])
def test_edge_wraps_any_application(draining):
    response = client_of(PlainTextResponse("hello"), draining).get("/")

    assert (response.text, len(response.headers["x-request-id"])) == ("hello", 16)
    assert response.headers["server-timing"].startswith("total;dur=")
    assert (response.headers.get("connection") == "close") == draining


@pytest.mark.parametrize("name", ["server-timing", "connection"])
def test_edge_keeps_headers_that_the_application_set(name):
    app = PlainTextResponse("hello", headers={name: "mine"})

    assert client_of(app, draining=True).get("/").headers.get_list(name) == ["mine"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Overloaded("full"), 503, "overloaded"),
        (GraphMismatch("x"), 500, "internal_error"),
        (HTTPException(404), 404, "not_found"),
        (MemoryError(MARKER), 503, "overloaded"),
        (KeyError(MARKER), 500, "internal_error"),
    ],
    ids=["service", "contract", "framework", "memory", "unexpected"],
)
def test_edge_turns_every_exception_into_a_problem(caplog, error, status, code):
    async def app(*_: object) -> None:
        raise error

    assert_problem(client_of(app).get("/"), status, code)
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == isinstance(error, KeyError)


def requests_total(client, route: str, status: int) -> float:
    registry = client.app.state.service.metrics._registry
    labels = {"route": route, "status": str(status)}
    return registry.get_sample_value("convserve_requests_total", labels) or 0.0


def access_lines(caplog) -> list[Any]:
    return [record for record in caplog.records if record.name == "service.access"]


@pytest.mark.parametrize("sent", ["a", "A.b_c-9", "x" * 64])
def test_edge_safe_request_id_echoed(client, sent):
    response = client.post("/v1/classify", content=RED, headers={"x-request-id": sent})

    assert (response.headers["x-request-id"], response.json()["request_id"]) == (sent, sent)


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "x" * 65,
        "a b",
        "a\r\nset-cookie: x=1",
        "a\x00",
        "\x1b[31m",
        "a\tb",
        "<script>",
        "\u202e",
    ],
    ids=["empty", "long", "space", "crlf", "nul", "escape", "tab", "markup", "right_to_left"],
)
def test_edge_unsafe_request_id_replaced(client, sent):
    response = client.get("/livez", headers={"x-request-id": sent.encode()})

    assert re.fullmatch(r"[0-9a-f]{16}", response.headers["x-request-id"])
    assert "set-cookie" not in response.headers


def test_edge_requests_without_id_get_different_ones(client):
    ids = {client.get("/livez").headers["x-request-id"] for _ in range(3)}

    assert len(ids) == 3


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/metrics", "/docs", "/nothing"])
def test_edge_every_response_has_the_common_headers(client, path):
    headers = client.get(path).headers

    assert headers.get_list("x-content-type-options") == ["nosniff"]
    kept = "etag" in headers  # may be kept, but must be asked for each time
    assert headers.get_list("cache-control") == ["no-cache" if kept else "no-store"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/livez"), ("GET", "/nowhere"), ("PUT", "/livez"), ("POST", "/v1/classify")],
    ids=["health", "not_found", "method_not_allowed", "refused"],
)
def test_edge_responses_without_classification_have_a_total_time(client, method, path):
    response = client.request(method, path)

    assert re.fullmatch(r"total;dur=\d+\.\d\d", response.headers["server-timing"])


def test_edge_logs_one_line_per_request_and_nothing_of_the_upload(fresh_client, caplog):
    with caplog.at_level(logging.DEBUG):
        response = fresh_client.post(
            f"/v1/classify?{MARKER}={MARKER}",
            files={MARKER: (MARKER, MARKER.encode())},
            headers={"user-agent": MARKER},
        )

    (line,) = access_lines(caplog)
    assert (line.route, line.method, line.status) == ("/v1/classify", "POST", 422)
    assert line.request_id == response.headers["x-request-id"]

    everything = [json.dumps(record.__dict__, default=str) for record in caplog.records]
    without_httpx = [text for text in everything if "httpx" not in text]
    assert MARKER not in "".join(without_httpx)


@pytest.mark.parametrize(
    ("path", "level"), [("/livez", "DEBUG"), ("/metrics", "DEBUG"), ("/v1/models", "INFO")]
)
def test_edge_probes_are_logged_at_debug_level(fresh_client, caplog, path, level):
    with caplog.at_level(logging.DEBUG):
        fresh_client.get(path)

    assert [line.levelname for line in access_lines(caplog)] == [level]


def test_edge_requests_counted_by_route_template_and_status(fresh_client):
    fresh_client.post("/v1/models/tiny/classify", content=RED)
    fresh_client.post("/v1/models/tiny/classify", content=b"x")
    fresh_client.post("/v1/models/other/classify", content=RED)

    counts = [
        requests_total(fresh_client, "/v1/models/{name}/classify", status)
        for status in (200, 415, 404)
    ]
    assert counts == [1, 1, 1]


def test_edge_random_paths_and_methods_create_no_metric_series(fresh_client):
    for number in range(20):
        fresh_client.get(f"/{MARKER}{number}")
        fresh_client.post(f"/v1/models/{MARKER}{number}/labels")
        fresh_client.request(f"{MARKER}{number}", "/v1/models")
        fresh_client.get(f"/v1/models/{MARKER}{number}/versions/{number + 1}")

    page = fresh_client.get("/metrics").text

    lines = [line for line in page.splitlines() if line.startswith("convserve_requests_total{")]
    assert {line.partition("{")[2] for line in lines if not line.endswith(" 0.0")} == {
        'route="unmatched",status="404"} 20.0',
        'route="/v1/models/{name}/labels",status="405"} 20.0',
        'route="/v1/models",status="405"} 20.0',
        'route="/v1/models/{name}/versions/{version}",status="404"} 20.0',
    }
    assert MARKER not in page


def test_edge_disconnect_is_counted_and_is_not_an_error(fresh_client, caplog):
    with caplog.at_level(logging.DEBUG):
        sent = fresh_client.portal.call(
            call, fresh_client.app, [b"half"], "image/png", "/v1/classify"
        )

    assert sent == []
    assert requests_total(fresh_client, "/v1/classify", 499) == 1
    assert all(record.levelno < logging.WARNING for record in caplog.records)
    assert fresh_client.app.state.dependencies.admission.n_bytes == 0


def test_edge_log_line_of_long_method_is_short(fresh_client, caplog):
    with caplog.at_level(logging.INFO):
        response = fresh_client.request("M" * 1000, "/livez")

    assert_problem(response, 405, "method_not_allowed")
    assert access_lines(caplog)[0].method == "M" * 16


# HEAD

PAGES = [
    "/livez",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/v1/models",
    "/v1/models/tiny/labels",
    "/v1/models/none",
    "/v1/models/tiny/versions/%00",
    "/nothing",
]


@pytest.mark.parametrize("path", PAGES)
def test_edge_head_answers_as_get_without_a_body(client, path):
    got, head = client.get(path), client.head(path)

    assert (head.status_code, head.content) == (got.status_code, b"")
    changing = {"x-request-id", "server-timing"} | (
        {"content-length"} if path == "/metrics" else set()
    )
    assert set(head.headers) == set(got.headers)
    assert {name: head.headers[name] for name in set(head.headers) - changing} == {
        name: got.headers[name] for name in set(got.headers) - changing
    }


def test_edge_head_is_counted_and_logged_with_its_method(fresh_client, caplog):
    with caplog.at_level(logging.INFO):
        fresh_client.head("/v1/models")

    assert requests_total(fresh_client, "/v1/models", 200) == 1
    assert access_lines(caplog)[0].method == "HEAD"

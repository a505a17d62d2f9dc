"""The hot routes, which bypass FastAPI: described in its OpenAPI document and as strict."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient

from service.api.payload import ClassifyOptions, query_options
from service.api.routes import HotRoutes, openapi_parameters, parse
from service.app import HOT_ROUTERS
from service.errors import InvalidParameter, Overloaded
from service.http.shedding import PacedRefusals
from tests import tinymodel
from tests.problems import MARKER, assert_problem

RED = tinymodel.picture("red")
TEMPLATES = {
    "/v1/classify": "/v1/classify",
    "/v1/models/tiny/classify": "/v1/models/{name}/classify",
    "/v1/models/none/classify": "/v1/models/{name}/classify",
    "/v1/models/tiny/versions/2/classify": "/v1/models/{name}/versions/{version}/classify",
}


def described(client: Any) -> dict[str, Any]:
    paths: dict[str, Any] = client.get("/openapi.json").json()["paths"]
    return paths


# OpenAPI description


def hot_operations() -> set[tuple[str, str]]:
    routes = HotRoutes(HOT_ROUTERS, FastAPI(), PacedRefusals()).routes
    return {(route.path, method) for route in routes for method in route.methods or ()}


def test_routes_every_hot_route_is_described(client):
    paths = described(client)

    for path, method in hot_operations():
        operation = paths[path][method.lower()]
        assert operation["requestBody"]["content"]
        assert operation["responses"]["200"]["content"]["application/json"]["schema"]


def test_routes_every_route_with_a_body_is_plain(client):
    with_body = {
        (path, method.upper())
        for path, operations in described(client).items()
        for method, operation in operations.items()
        if "requestBody" in operation
    }

    assert with_body == hot_operations()


@pytest.mark.parametrize("path", sorted(path for path, _ in hot_operations()))
def test_routes_described_parameters_are_those_of_the_path_and_the_options(client, path):
    operation = described(client)[path]["post"]

    found = [(one["name"], one["in"]) for one in operation["parameters"]]
    in_path = [(name, "path") for name in ("name", "version") if f"{{{name}}}" in path]
    assert found == in_path + [(name, "query") for name in ClassifyOptions.model_fields]
    assert [one["required"] for one in operation["parameters"]] == [
        where == "path" for _, where in found
    ]


class Item(BaseModel):
    """Parameters of a made-up path."""

    name: str
    count: int | None = Field(None, ge=1, description="How many.")


def test_routes_parameters_are_described_by_their_model():
    name, count = openapi_parameters("query", Item)

    assert name == {
        "name": "name",
        "in": "query",
        "required": True,
        "schema": {"title": "Name", "type": "string"},
    }
    assert count == {
        "name": "count",
        "in": "query",
        "required": False,
        "schema": {"title": "Count", "type": "integer", "minimum": 1},
        "description": "How many.",
    }


# Routing


def test_routes_classify_requests_bypass_fastapi(fresh_client, monkeypatch):
    async def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(fresh_client.app, "middleware_stack", refuse)

    answers = [
        fresh_client.post("/v1/models/tiny/versions/2/classify?top_k=1", content=RED),
        fresh_client.post("/v1/classify?min_probability=0.5", files={"top_k": RED}),
        fresh_client.post("/v1/models/none/classify", content=RED),
    ]

    assert [answer.status_code for answer in answers] == [200, 200, 404]


def test_routes_fastapi_handles_other_methods_on_a_hot_path():
    router, other = APIRouter(), APIRouter()

    @router.post("/items")
    async def create(_request: Request) -> Response:
        return PlainTextResponse("plain")

    @other.get("/items")
    async def fetch() -> str:
        return "fastapi"

    app = FastAPI()
    app.include_router(router)
    app.include_router(other)
    client = TestClient(HotRoutes([router], app, PacedRefusals()))

    assert client.post("/items").text == "plain"
    assert client.get("/items").json() == "fastapi"
    assert client.put("/items").status_code == 405


def test_routes_refusal_of_an_overload_waits_for_its_turn_without_the_body(monkeypatch):
    router, waited = APIRouter(), []

    @router.post("/items")
    async def create(_request: Request) -> Response:
        raise Overloaded("full", 1)

    async def wait(_self: PacedRefusals, client: str, scope: Any, _receive: Any) -> None:
        waited.append((client, scope["path"]))

    monkeypatch.setattr(PacedRefusals, "wait", wait)
    client = TestClient(HotRoutes([router], FastAPI(), PacedRefusals()), client=("10.0.0.1", 1))

    with pytest.raises(Overloaded) as caught:
        client.post("/items", content=b"x")

    assert waited == [("10.0.0.1", "/items")]
    functions = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "create" not in functions  # its frame would keep the body


@pytest.mark.parametrize("path", TEMPLATES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS", "DELETE", MARKER])
def test_routes_wrong_method_answers_405_with_the_allowed_one(client, method, path):
    response = client.request(method, path)

    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/classify/",
        "//v1/classify",
        "/V1/classify",
        "/v1/classify/x",
        "/prefix/v1/classify",
        "/v1/models//classify",
        "/v1/models/a%2Fb/classify",
        "/v1/models/tiny/classify/",
        "/v1/models/tiny/versions//classify",
    ],
)
def test_routes_almost_right_path_is_not_found(client, path):
    assert_problem(client.post(path, content=RED), 404, "not_found")


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("2", 200),
        ("9", 404),
        ("999999999999999999", 404),
        ("stable", 404),
        ("02", 422),
        ("2.0", 422),
        ("latest", 422),
        ("0", 422),
        ("-1", 422),
        ("2.5", 422),
        ("\N{ARABIC-INDIC DIGIT TWO}", 422),
        ("9" * 5000, 422),
    ],
)
def test_routes_version_is_parsed_as_fastapi_parses_it(client, version, status):
    plain = client.post(f"/v1/models/tiny/versions/{version}/classify", content=RED)
    through_fastapi = client.get(f"/v1/models/tiny/versions/{version}")

    assert (plain.status_code, through_fastapi.status_code) == (status, status)
    if status != 200:
        assert plain.json()["detail"] == through_fastapi.json()["detail"]


# Query parameters

UNKNOWN = "unknown query parameter; known: top_k, min_probability"
TOO_LOW = "top_k: Input should be greater than or equal to 1"
NOT_AN_INTEGER = "top_k: Input should be a valid integer, unable to parse string as an integer"
QUERIES: dict[str, int | str] = {
    "": 3,
    "&&": 3,
    "top_k=1": 1,
    "top_k=01": 1,
    "top_k=1.0": 1,
    "top_k=%2B1": 1,
    "top_k=%31": 1,
    "%74op_k=1": 1,
    "top_k=1&": 1,
    "top_k=1&top_k=2": 2,
    "top_k=x&top_k=1": 1,
    "min_probability=0.5": 1,
    "min_probability=1e-3&top_k=2": 2,
    "top_k=0": TOO_LOW,
    "top_k=-1": TOO_LOW,
    "top_k=0&other=1": TOO_LOW,
    "top_k": NOT_AN_INTEGER,
    "top_k=": NOT_AN_INTEGER,
    "top_k=1.5": NOT_AN_INTEGER,
    "top_k=%B2": NOT_AN_INTEGER,
    "top_k=null": NOT_AN_INTEGER,
    "top_k=1;top_k=2": NOT_AN_INTEGER,
    f"top_k={MARKER}": NOT_AN_INTEGER,
    "top_k=4": 3,
    "top_k=99999999999999999999": 3,
    "min_probability=2": "min_probability: Input should be less than or equal to 1",
    "min_probability=nan": "min_probability: Input should be less than or equal to 1",
    "Top_k=1": UNKNOWN,
    "=1": UNKNOWN,
    f"{MARKER}=1": UNKNOWN,
}


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/models/tiny/classify"])
@pytest.mark.parametrize("query", QUERIES)
def test_routes_query_is_parsed_or_refused_with_the_reason(client, query, path):
    response = client.post(f"{path}?{query}", content=RED)

    expected = QUERIES[query]
    if isinstance(expected, int):
        assert len(response.json()["predictions"]) == expected
    else:
        assert_problem(response, 422, "invalid_parameter")
        assert response.json()["detail"] == expected


def test_routes_equal_queries_share_their_options():
    assert query_options(b"top_k=3") is query_options(b"top_k=3")


def test_parse_names_the_field_and_never_the_value():
    with pytest.raises(InvalidParameter, match="count: ") as caught:
        parse(Item, {"name": MARKER, "count": MARKER})

    assert MARKER not in str(caught.value)


# Metrics and logs


@pytest.mark.parametrize("path", TEMPLATES)
def test_routes_requests_are_counted_and_logged_under_the_template(fresh_client, caplog, path):
    with caplog.at_level(logging.INFO, "service.access"):
        status = fresh_client.post(path, content=RED).status_code

    registry = fresh_client.app.state.service.metrics._registry
    route = TEMPLATES[path]
    labels = {"route": route, "status": str(status)}
    assert registry.get_sample_value("convserve_requests_total", labels) == 1
    assert registry.get_sample_value("convserve_request_seconds_count", {"route": route}) == 1
    (line,) = [record for record in caplog.records if record.name == "service.access"]
    assert (line.route, line.status) == (route, status)


def test_routes_refusal_is_counted_once(fresh_client):
    fresh_client.post("/v1/classify", content=RED, headers={"x-request-timeout-ms": "1e-9"})

    registry = fresh_client.app.state.service.metrics._registry
    labels = {"code": "deadline_exceeded", "reason": "deadline"}
    assert registry.get_sample_value("convserve_refused_total", labels) == 1


def test_routes_unexpected_error_is_answered_and_logged_once(fresh_client, caplog, monkeypatch):
    async def fail(*_args: object, **_options: object) -> None:
        raise KeyError(MARKER)

    monkeypatch.setattr(fresh_client.app.state.dependencies.classifier, "classify", fail)

    response = fresh_client.post("/v1/classify", content=RED)

    assert_problem(response, 500, "internal_error")
    assert len([one for one in caplog.records if one.levelno >= logging.ERROR]) == 1

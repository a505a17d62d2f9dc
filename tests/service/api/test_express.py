"""The short way answers what the usual one does; the usual one is had by hiding the short one."""

from __future__ import annotations

import base64
import logging
import re
from typing import Any

import httpx2
import pytest

from service.api import express as module
from service.api.express import Express
from tests import tinymodel

RED, GREEN = tinymodel.picture("red"), tinymodel.picture("green")
TEMPLATES = {
    "/v1/classify": "/v1/classify",
    "/v1/models/tiny/classify": "/v1/models/{name}/classify",
    "/v1/models/A.b_c-9/classify": "/v1/models/{name}/classify",
    "/v1/models/tiny/versions/2/classify": "/v1/models/{name}/versions/{version}/classify",
    "/v1/models/a/versions/123456789/classify": "/v1/models/{name}/versions/{version}/classify",
}


def scope_of(path: str = "/v1/classify", query: bytes = b"", **changes: Any) -> dict[str, Any]:
    plain = {"type": "http", "method": "POST", "path": path, "root_path": ""}
    return {**plain, "query_string": query, "headers": [], **changes}


def template(client: Any, scope: dict[str, Any]) -> str | None:
    found = Express(client.app.state.parts).find(scope)
    return found[0] if found else None


# What it takes


@pytest.mark.parametrize("path", TEMPLATES)
def test_express_takes_every_classify_path_under_its_template(client, path):
    assert template(client, scope_of(path)) == TEMPLATES[path]


@pytest.mark.parametrize("query", [b"", b"top_k=1", b"top_k=3", b"top_k=9999"])
def test_express_takes_a_plain_query(client, query):
    assert template(client, scope_of(query=query)) == "/v1/classify"


@pytest.mark.parametrize(
    "query",
    [
        b"top_k=0",
        b"top_k=01",
        b"top_k=-1",
        b"top_k=%31",
        b"top_k=12345",
        b"top_k=1.5",
        b"top_k=",
        b"top_k=1\n",
        b"top_k=1&top_k=2",
        b"top_k=1&",
        b"&top_k=1",
        b"Top_k=1",
        b"min_probability=0.5",
        b"other=1",
        b"top_k=\xb2",
    ],
)
def test_express_leaves_any_other_query(client, query):
    assert template(client, scope_of(query=query)) is None


@pytest.mark.parametrize(
    "path",
    [
        "/v1/classify/",
        "/v1/classify\n",
        "//v1/classify",
        "/V1/classify",
        "/v1/classify/x",
        "/prefix/v1/classify",
        "/v1/models//classify",
        "/v1/models/a/b/classify",
        "/v1/models/a b/classify",
        "/v1/models/\u00e4/classify",
        "/v1/models/a%62/classify",
        "/v1/models/tiny/classify/",
        "/v1/models/tiny/versions/classify",
        "/v1/models/tiny/versions//classify",
        "/v1/models/tiny/versions/0/classify",
        "/v1/models/tiny/versions/01/classify",
        "/v1/models/tiny/versions/-1/classify",
        "/v1/models/tiny/versions/1.0/classify",
        "/v1/models/tiny/versions/\u0662/classify",
        "/v1/models/tiny/versions/1234567890/classify",
        "/v1/models/tiny/versions/2",
        "/v1/models",
        "/livez",
        "",
    ],
)
def test_express_leaves_any_other_path(client, path):
    assert template(client, scope_of(path)) is None


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS", "post"])
def test_express_leaves_other_methods(client, method):
    assert template(client, scope_of(method=method)) is None


def test_express_leaves_mounted_applications(client):
    assert template(client, scope_of(root_path="/api")) is None


def test_express_scope_without_optional_keys_is_taken(client):
    scope = scope_of()
    del scope["root_path"]  # ASGI: missing means empty

    assert template(client, scope) == "/v1/classify"


def test_express_equal_queries_share_their_options():
    assert module._options(b"3") is module._options(b"3")


# What it answers


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


POST = "/v1/classify"
ALIKE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "raw": ("POST", POST, {"content": RED}),
    "raw_top_1": ("POST", f"{POST}?top_k=1", {"content": RED}),
    "top_k_beyond_classes": ("POST", f"{POST}?top_k=4", {"content": RED}),
    "named": ("POST", "/v1/models/tiny/classify?top_k=2", {"content": RED}),
    "percent_encoded_name": ("POST", "/v1/models/t%69ny/classify", {"content": RED}),
    "encoded_slash": ("POST", "/v1/models/ti%2Fny/classify", {"content": RED}),
    "version": ("POST", "/v1/models/tiny/versions/2/classify", {"content": RED}),
    "unknown_model": ("POST", "/v1/models/none/classify", {"content": RED}),
    "unknown_version": ("POST", "/v1/models/tiny/versions/9/classify", {"content": RED}),
    "no_picture": ("POST", POST, {"content": b"x"}),
    "cut": ("POST", POST, {"content": RED[:40]}),
    "empty": ("POST", POST, {"content": b""}),
    "multipart": ("POST", POST, {"files": [("image", RED), ("image", GREEN)]}),
    "multipart_partly_bad": ("POST", POST, {"files": [("image", RED), ("image", b"x")]}),
    "multipart_option": ("POST", POST, {"files": {"a": RED}, "data": {"top_k": "2"}}),
    "multipart_bad_option": ("POST", POST, {"files": {"a": RED}, "data": {"top_k": "0"}}),
    "json": ("POST", POST, {"json": {"image": encoded(RED)}}),
    "json_many": ("POST", POST, {"json": {"images": [encoded(RED), "?"]}}),
    "json_overrides_query": (
        "POST",
        f"{POST}?top_k=1",
        {"json": {"image": encoded(RED), "top_k": 2}},
    ),
    "json_broken": (
        "POST",
        POST,
        {"content": b"{", "headers": {"content-type": "application/json"}},
    ),
    "bad_content_type": ("POST", POST, {"content": RED, "headers": {"content-type": "text/html"}}),
    "content_encoding": (
        "POST",
        POST,
        {"content": RED, "headers": {"content-encoding": "gzip"}},
    ),
    "too_large": ("POST", POST, {"content": b"x" * 30_000_000}),
    "timeout_bad": ("POST", POST, {"content": RED, "headers": {"x-request-timeout-ms": "x"}}),
    "timeout_long": ("POST", POST, {"content": RED, "headers": {"x-request-timeout-ms": "1e9"}}),
    "origin": ("POST", POST, {"content": RED, "headers": {"origin": "http://x"}}),
    "other_method": ("PUT", POST, {"content": RED}),
    "head": ("HEAD", POST, {}),
    "trailing_slash": ("POST", f"{POST}/", {"content": RED}),
    "version_zero": ("POST", "/v1/models/tiny/versions/0/classify", {"content": RED}),
    "unknown_option": ("POST", f"{POST}?x=1", {"content": RED}),
    "bad_top_k": ("POST", f"{POST}?top_k=0", {"content": RED}),
}
TAKEN = set(ALIKE) - {
    "encoded_slash",
    "other_method",
    "head",
    "trailing_slash",
    "version_zero",
    "unknown_option",
    "bad_top_k",
}


def ask(client: Any, method: str, path: str, kind: dict[str, Any]) -> Any:
    headers = {"x-request-id": "same", **kind.get("headers", {})}
    if "files" in kind:  # a boundary that does not change, or lengths would
        headers["content-type"] = "multipart/form-data; boundary=zq7"
    return client.request(method, path, **{**kind, "headers": headers})


def visible(response: httpx2.Response) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers in their order and body, without how long it took."""
    headers = [(name, re.sub(r"dur=[0-9.]+", "", v)) for name, v in response.headers.multi_items()]
    return response.status_code, headers, response.content


@pytest.fixture
def hide_express(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sends every request the usual way from the call on."""

    def hide() -> None:
        monkeypatch.setattr(Express, "find", lambda _self, _scope: None)

    return hide


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each request was taken."""
    taken: list[bool] = []
    find = Express.find

    def noting(self: Express, scope: Any) -> Any:
        result = find(self, scope)
        taken.append(result is not None)
        return result

    monkeypatch.setattr(Express, "find", noting)
    return taken


@pytest.mark.parametrize("kind", ALIKE)
def test_express_answers_as_the_usual_way_does(client, hide_express, kind):
    short = ask(client, *ALIKE[kind])
    hide_express()
    usual = ask(client, *ALIKE[kind])

    assert visible(short) == visible(usual)


@pytest.mark.parametrize("kind", ALIKE)
def test_express_takes_what_is_compared_as_taken(client, found, kind):
    ask(client, *ALIKE[kind])

    assert found == [kind in TAKEN]


EXPIRED = {"content": RED, "headers": {"x-request-timeout-ms": "1e-9"}}


def test_express_expired_request_answered_as_the_usual_way_does(fresh_client, hide_express):
    short = ask(fresh_client, "POST", POST, EXPIRED)
    hide_express()
    usual = ask(fresh_client, "POST", POST, EXPIRED)

    assert short.status_code == 504
    assert visible(short) == visible(usual)


@pytest.mark.parametrize("state", ["closed", "full"])
def test_express_refusal_at_the_door_is_the_usual_one(fresh_client, hide_express, state):
    admission = fresh_client.app.state.parts.admission
    if state == "closed":
        admission.closed = True
    else:
        admission.images = 256

    short = ask(fresh_client, "POST", POST, {"content": RED})
    hide_express()
    usual = ask(fresh_client, "POST", POST, {"content": RED})
    admission.images = 0

    assert short.status_code == 503
    assert visible(short) == visible(usual)


def test_express_error_nobody_foresaw_is_answered_as_the_usual_way_does(
    fresh_client, hide_express, monkeypatch
):
    async def fail(*_args: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(fresh_client.app.state.parts.classifier, "classify", fail)

    short = ask(fresh_client, "POST", POST, {"content": RED})
    hide_express()
    usual = ask(fresh_client, "POST", POST, {"content": RED})

    assert short.status_code == 500
    assert visible(short) == visible(usual)


# What it leaves behind

COUNTED = {
    "/v1/classify": "/v1/classify",
    "/v1/models/tiny/classify": "/v1/models/{name}/classify",
    "/v1/models/none/classify": "/v1/models/{name}/classify",
    "/v1/models/tiny/versions/2/classify": "/v1/models/{name}/versions/{version}/classify",
}


@pytest.mark.parametrize("path", COUNTED)
@pytest.mark.parametrize("way", ["short", "usual"])
def test_express_requests_counted_under_the_template_either_way(
    fresh_client, hide_express, way, path
):
    if way == "usual":
        hide_express()

    status = ask(fresh_client, "POST", path, {"content": RED}).status_code

    registry = fresh_client.app.state.service.metrics._registry
    route = COUNTED[path]
    labels = {"route": route, "status": str(status)}
    assert registry.get_sample_value("convserve_requests_total", labels) == 1
    assert registry.get_sample_value("convserve_request_seconds_count", {"route": route}) == 1


@pytest.mark.parametrize("way", ["short", "usual"])
def test_express_refusals_counted_once_either_way(fresh_client, hide_express, way):
    if way == "usual":
        hide_express()

    ask(fresh_client, "POST", POST, EXPIRED)

    registry = fresh_client.app.state.service.metrics._registry
    labels = {"code": "deadline_exceeded", "reason": "deadline"}
    assert registry.get_sample_value("convserve_refused_total", labels) == 1


@pytest.mark.parametrize("path", COUNTED)
def test_express_log_line_is_the_usual_one(client, hide_express, caplog, path):
    with caplog.at_level(logging.INFO, "service.access"):
        ask(client, "POST", path, {"content": RED})
        hide_express()
        ask(client, "POST", path, {"content": RED})

    names = ("levelname", "request_id", "method", "route", "status", "client")
    short, usual = (
        [getattr(record, name) for name in names]
        for record in caplog.records
        if record.name == "service.access"
    )
    assert short == usual

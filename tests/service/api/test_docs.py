from __future__ import annotations

import re
from typing import Any
from urllib.parse import urljoin

import pytest

from service.app import ROUTERS
from service.http.problems import MEDIA_TYPE
from tests import tinymodel
from tests.problems import assert_problem

RED = tinymodel.picture("red")
OPERATIONS = [
    (route.path, method)  # type: ignore[attr-defined]
    for router in ROUTERS
    for route in router.routes
    for method in sorted(route.methods)  # type: ignore[attr-defined]
]


def test_docs_page_loads_only_from_this_server(client):
    page = client.get("/docs")

    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    links = links_of(page.text)
    assert len(links) == 4
    for link in links:
        assert client.get(urljoin("/docs", link)).status_code == 200, link


def links_of(page: str) -> list[str]:
    return re.findall(r"""(?:(?:src|href)=|url: )["']([^"']+)""", page)


def test_docs_links_and_servers_are_relative(client):
    links = links_of(client.get("/docs").text)

    assert not [link for link in links if link.startswith("/") or ":" in link]
    assert client.get("/openapi.json").json()["servers"] == [{"url": "."}]


def test_docs_root_redirects_to_the_page(client):
    response = client.get("/")

    assert (response.status_code, response.headers["location"]) == (307, "docs")


@pytest.mark.parametrize("stripped", [False, True])
def test_docs_work_below_a_prefix(make_client, stripped):
    client = make_client(root_path="/vision/ai")

    def ask(path: str) -> Any:
        """Asks as a proxy at /vision/ai does."""
        assert path.startswith("/vision/ai")
        return client.get(path.removeprefix("/vision/ai") or "/" if stripped else path)

    for root in ("/vision/ai", "/vision/ai/"):
        assert ask(root).headers["location"] == "/vision/ai/docs"
    for link in links_of(ask("/vision/ai/docs").text):
        assert ask(urljoin("/vision/ai/docs", link)).status_code == 200, link
    server = ask("/vision/ai/openapi.json").json()["servers"][0]["url"]
    models = urljoin("/vision/ai/openapi.json", server) + "v1/models"
    assert ask(models).json()["default"] == "tiny"


def test_docs_prefix_is_only_cut_from_whole_segments(make_client):
    client = make_client(root_path="/vision")

    for path in ("/visions/livez", "/visionlivez", "/vision/vision/livez", "/vision//livez"):
        assert_problem(client.get(path), 404, "not_found")


def test_docs_classify_works_below_a_prefix(make_client):
    client = make_client(root_path="/vision")

    for path in ("/v1/classify", "/vision/v1/models/tiny/classify"):
        assert client.post(path, content=RED).json()["predictions"][0]["label"] == "red"
    assert 'route="/v1/models/{name}/classify",status="200"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/docs/assets/favicon.png"])
def test_docs_switched_off_are_not_found(make_client, path):
    assert_problem(make_client(docs=False).get(path), 404, "not_found")


@pytest.mark.parametrize(
    "path", ["/docs/assets/../app.py", "/docs/assets/%00", "/docs/assets/" + "a" * 300]
)
def test_docs_odd_asset_is_not_found(client, path):
    assert_problem(client.get(path), 404, "not_found")


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_docs_every_endpoint_is_described(client, path, method):
    operation = client.get("/openapi.json").json()["paths"][path][method.lower()]

    assert operation["summary"]
    assert operation["description"]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_docs_every_described_error_is_a_problem(client, path, method):
    responses = client.get("/openapi.json").json()["paths"][path][method.lower()]["responses"]

    for status, response in responses.items():
        if status not in ("200", "304"):
            assert list(response["content"]) == [MEDIA_TYPE], status

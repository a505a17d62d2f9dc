from __future__ import annotations

import re

import pytest

from service.app import ROUTERS
from service.http.problems import MEDIA_TYPE
from tests.problems import assert_problem

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
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert links
    for link in links:
        assert client.get(link).status_code == 200, link


def test_docs_root_redirects_to_the_page(client):
    response = client.get("/")

    assert (response.status_code, response.headers["location"]) == (307, "/docs")


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
        if status != "200":
            assert list(response["content"]) == [MEDIA_TYPE], status

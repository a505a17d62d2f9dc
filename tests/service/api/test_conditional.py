"""ETag and If-None-Match on the documents that describe models."""

from __future__ import annotations

import pytest

from service.errors import ModelNotReady
from tests import tinymodel

PATHS = [
    "/v1/models",
    "/v1/models/tiny",
    "/v1/models/tiny/labels",
    "/v1/models/tiny/versions/2",
    "/v1/models/tiny/versions/2/labels",
    "/openapi.json",
    "/docs/assets/swagger-ui.css",
]


def etag_of(client, path: str) -> str:
    etag: str = client.get(path).headers["etag"]
    return etag


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", ["{}", "W/{}", '"a", {}', '"a" ,W/{},', "*"])
def test_conditional_document_that_the_client_has_is_not_sent(client, path, form):
    etag = etag_of(client, path)

    for method in ("GET", "HEAD"):
        response = client.request(method, path, headers={"If-None-Match": form.format(etag)})

        assert (response.status_code, response.content) == (304, b"")
        assert (response.headers["etag"], response.headers["cache-control"]) == (etag, "no-cache")
        assert "content-type" not in response.headers


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("form", ["", '"a"', "{}x", "a{}", ",,,", '"*"', "W/", "\xff"])
def test_conditional_other_document_is_sent(client, path, form):
    etag = etag_of(client, path)

    response = client.get(path, headers={"If-None-Match": form.format(etag).encode("latin-1")})

    assert (response.status_code, response.headers["etag"]) == (200, etag)
    assert response.content


def test_conditional_two_fields_are_one_list(client):
    etag = etag_of(client, "/v1/models")
    fields = [("If-None-Match", '"a"'), ("If-None-Match", etag)]

    assert client.get("/v1/models", headers=fields).status_code == 304


def test_conditional_every_document_has_its_own_tag(client):
    # Those of version 2 are the model's own: it is the version that answers.
    paths = [path for path in PATHS if "versions" not in path]

    assert len({etag_of(client, path) for path in paths}) == len(paths) == 5


def test_conditional_tag_changes_with_the_state(fresh_client, monkeypatch):
    before = (
        etag_of(fresh_client, "/v1/models/tiny"),
        etag_of(fresh_client, "/v1/models/tiny/labels"),
    )
    deps = fresh_client.app.state.dependencies

    monkeypatch.setattr(deps, "not_ready", lambda _: ModelNotReady("why"))

    after = (
        etag_of(fresh_client, "/v1/models/tiny"),
        etag_of(fresh_client, "/v1/models/tiny/labels"),
    )
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_conditional_answers_with_pictures_have_no_tag(client):
    response = client.post(
        "/v1/classify", content=tinymodel.picture("red"), headers={"If-None-Match": "*"}
    )

    assert response.status_code == 200
    assert "etag" not in response.headers
    assert response.headers["cache-control"] == "no-store"


def test_conditional_missing_model_is_not_found(client):
    response = client.get("/v1/models/none/labels", headers={"If-None-Match": "*"})

    assert (response.status_code, response.headers["cache-control"]) == (404, "no-store")

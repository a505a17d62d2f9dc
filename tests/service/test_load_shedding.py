"""Which requests the application has the protocol refuse. See also tests/service/http/test_shedding.py."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests import tinymodel
from tests.problems import assert_problem


def fill(client: TestClient) -> Any:
    """Fills the service, lets pass what is refused in full, and returns what sheds requests."""
    app = client.app
    app.state.service._admission.images = 256  # type: ignore[attr-defined]
    for _ in range(10):
        assert app.state.shed(scope_of()) is None  # type: ignore[attr-defined]
    return app.state.shed  # type: ignore[attr-defined]


def scope_of(
    path: str = "/v1/classify", client: str = "10.0.0.1", method: str = "POST", **headers: str
) -> dict[str, Any]:
    fields = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return {
        "type": "http",
        "method": method,
        "path": path,
        "scheme": "http",
        "client": (client, 1),
        "headers": fields,
    }


def test_app_with_room_sheds_nothing(fresh_client):
    shed = fresh_client.app.state.shed

    assert [shed(scope_of()) for _ in range(20)] == [None] * 20


@pytest.mark.parametrize(
    ("path", "method", "shed"),
    [
        ("/v1/classify", "POST", True),
        ("/v1/models/tiny/classify", "POST", True),
        ("/v1/models/tiny/versions/1/classify", "POST", True),
        ("/v1/classify", "GET", False),
        ("/v1/classify/", "POST", False),
        ("/v1/models/tiny", "GET", False),
        ("/livez", "GET", False),
    ],
)
def test_app_full_sheds_requests_with_pictures_only(fresh_client, path, method, shed):
    refuse = fill(fresh_client)

    assert (refuse(scope_of(path, method=method)) is not None) == shed


@pytest.mark.anyio
async def test_app_full_sheds_what_the_application_would_refuse(fresh_client):
    refusal = fill(fresh_client)(scope_of())

    head, _, body = refusal.response([]).partition(b"\r\n\r\n")
    response = fresh_client.post("/v1/classify", content=tinymodel.picture("red"))

    assert_problem(response, 503, "overloaded")
    assert head.startswith(b"HTTP/1.1 503 ")
    document = json.loads(body)
    assert document | {"request_id": ""} == response.json() | {"request_id": ""}


def test_app_full_sheds_below_its_prefix(make_client):
    refuse = fill(make_client(root_path="/cnn"))
    scope = scope_of("/cnn/v1/classify")

    assert refuse(scope) is not None
    assert scope["path"] == "/cnn/v1/classify"  # as it came, for the case that it goes on


@pytest.mark.anyio
async def test_app_full_sheds_for_the_forwarded_client(make_client):
    client = make_client(forwarded_allow_ips="10.0.0.1")
    refuse = fill(client)
    scope = scope_of(x_forwarded_for="192.0.2.7")

    refuse(scope).response([])

    assert "192.0.2.7" in client.app.state.service._admission._usage
    assert scope["client"] == ("10.0.0.1", 1)


def test_app_full_leaves_answers_for_pages_of_other_origins_to_the_application(make_client):
    refuse = fill(make_client(cors_origins="https://a.example"))

    assert refuse(scope_of(origin="https://a.example")) is None
    assert refuse(scope_of(origin="https://b.example")) is not None


def test_app_full_sheds_nothing_while_it_drains(fresh_client):
    refuse = fill(fresh_client)
    fresh_client.app.state.service.begin_drain()

    assert refuse(scope_of()) is None

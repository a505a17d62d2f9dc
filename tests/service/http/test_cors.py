from __future__ import annotations

import pytest

from service.settings import SettingsInvalid, from_environment
from tests import tinymodel
from tests.problems import assert_problem

RED = tinymodel.picture("red")
PAGE = "https://example.org"
ORIGINS = f"{PAGE}, http://localhost:3000"
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


def cors_headers(response) -> dict[str, str]:
    return {k: v for k, v in response.headers.items() if k.startswith("access-control-")}


@pytest.fixture
def client(make_client):
    return make_client(cors_origins=ORIGINS)


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
@pytest.mark.parametrize("path", ["/v1/classify", "/v1/models", "/nothing"])
def test_cors_allowed_origin_may_read_every_answer(client, origin, path):
    response = client.get(path, headers={"Origin": origin})

    assert response.headers["access-control-allow-origin"] == origin
    assert "X-Request-Id" in response.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in response.headers
    assert response.headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "*",
        "https://example.org.evil.test",
        "https://EXAMPLE.org",
        "http://example.org",
        "https://example.org:444",
        "https://example.org, http://localhost:3000",
        "",
    ],
)
def test_cors_other_origins_get_no_headers(client, origin):
    headers = {} if origin is None else {"Origin": origin}

    got = client.post("/v1/classify", content=RED, headers=headers)
    preflight = client.options("/v1/classify", headers=headers | ASKED)

    assert (got.status_code, cors_headers(got), got.headers["vary"]) == (200, {}, "Origin")
    assert_problem(preflight, 405, "method_not_allowed")
    assert cors_headers(preflight) == {}


def test_cors_two_origins_get_no_headers(client):
    response = client.get("/livez", headers=[("Origin", PAGE), ("Origin", PAGE)])

    assert cors_headers(response) == {}


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/models/tiny/labels"])
def test_cors_preflight_of_an_allowed_origin_is_answered(client, path):
    response = client.options(path, headers={"Origin": PAGE, **ASKED})

    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == PAGE
    assert "POST" in response.headers["access-control-allow-methods"].split(", ")
    assert "Content-Type" in response.headers["access-control-allow-headers"].split(", ")
    assert 'route="unmatched",status="204"} 1.0' in client.get("/metrics").text


def test_cors_options_that_is_no_preflight_is_refused(client):
    response = client.options("/v1/classify", headers={"Origin": PAGE})

    assert_problem(response, 405, "method_not_allowed")


def test_cors_is_off_by_default(make_client):
    client = make_client()

    got = client.get("/livez", headers={"Origin": PAGE})
    preflight = client.options("/v1/classify", headers={"Origin": PAGE, **ASKED})

    assert cors_headers(got) == cors_headers(preflight) == {}
    assert "vary" not in got.headers
    assert preflight.status_code == 405


@pytest.mark.parametrize(
    "given",
    [
        "*",
        "null",
        "example.org",
        "https://example.org/",
        "https://Example.org",
        f"{PAGE},",
        "ftp://a",
    ],
)
def test_cors_setting_that_is_no_list_of_origins_refused(given):
    with pytest.raises(SettingsInvalid, match="must be origins separated by commas"):
        from_environment({}, {"cors_origins": given})


@pytest.mark.parametrize("given", ["", PAGE, ORIGINS, "http://[::1]:8080"])
def test_cors_setting_with_a_list_accepted(given):
    assert from_environment({}, {"cors_origins": given}).cors_origins == given

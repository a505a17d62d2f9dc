"""Checks an error response against the error contract."""

from __future__ import annotations

from typing import Final

from httpx2 import Response

from service.http.problems import MEDIA_TYPE, PROBLEMS

MARKER: Final = "zq7marker"  # tests send it; no response or log line may repeat it

_MEMBERS: Final = ["type", "title", "status", "code", "detail", "request_id"]


def assert_problem(response: Response, status: int, code: str) -> None:
    """Checks status, code, headers and size of a problem response, and that it leaks nothing."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE

    document = response.json()
    assert list(document) == _MEMBERS
    assert (document["type"], document["status"], document["code"]) == ("about:blank", status, code)
    assert document["title"] == PROBLEMS[code].title
    assert document["detail"]

    assert response.headers["x-request-id"] == document["request_id"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"

    assert len(response.content) <= 1024
    for leak in (MARKER, "Traceback", ".py", "Error("):
        assert leak not in response.text

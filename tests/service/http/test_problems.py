from __future__ import annotations

import asyncio
import inspect
import json
import logging

import pytest
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from contract import errors as contract_errors
from service import errors
from service.http import problems
from service.http.problems import PROBLEMS, code_of, problem_document, problem_response
from tests.problems import MARKER, assert_problem
from tests.service.asgi import call

MORE_TIME = (
    "; allow more time with X-Request-Timeout-Ms, or with CONVSERVE_REQUEST_TIMEOUT_S on the server"
)
BASES = (errors.ServiceError, contract_errors.ImageError)


def errors_with_code(module: object, base: type[Exception]) -> list[type[Exception]]:
    found = inspect.getmembers(module, inspect.isclass)
    return [one for _, one in found if issubclass(one, base) and hasattr(one, "code")]


ERRORS = errors_with_code(errors, errors.ServiceError) + errors_with_code(
    contract_errors, contract_errors.ImageError
)
REPOSITORY_ERRORS = [
    error
    for error in errors_with_code(contract_errors, contract_errors.RepositoryError)
    if error.code in PROBLEMS  # type: ignore[attr-defined]
]
MODEL_ERRORS = errors_with_code(contract_errors, contract_errors.ModelError)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_problems_every_error_has_a_row(error):
    assert error.code in PROBLEMS


@pytest.mark.parametrize("error", ERRORS + REPOSITORY_ERRORS, ids=lambda error: error.__name__)
def test_problems_every_error_answered_with_its_message(fresh_client, error):
    fresh_client.app.add_api_route("/raise", handler_raising(error("the message")))

    response = fresh_client.get("/raise")

    assert_problem(response, PROBLEMS[error.code].status, error.code)
    late = issubclass(error, errors.DeadlineExceeded)
    assert response.json()["detail"] == "the message" + (MORE_TIME if late else "")
    assert ("retry-after" in response.headers) == issubclass(error, errors.Unavailable)
    assert ("www-authenticate" in response.headers) == (PROBLEMS[error.code].status == 401)
    assert ("connection" in response.headers) == PROBLEMS[error.code].close


@pytest.mark.parametrize("error", MODEL_ERRORS, ids=lambda error: error.__name__)
def test_problems_model_error_at_run_time_is_internal_without_details(error):
    document = problem_document(error(MARKER), "id")

    assert (document["status"], document["code"]) == (500, "internal_error")
    assert MARKER not in json.dumps(document)


@pytest.mark.parametrize("code", PROBLEMS)
def test_problems_row_has_an_error_status_and_a_title(code):
    problem = PROBLEMS[code]

    assert 400 <= problem.status < 600
    assert problem.title
    assert code == code.lower()


@pytest.mark.parametrize("code", PROBLEMS)
def test_problems_every_code_is_raised_somewhere(code):
    raised = {error.code for error in ERRORS + REPOSITORY_ERRORS}  # type: ignore[attr-defined]

    assert code in raised | {"not_found", "method_not_allowed", "headers_too_large"}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HTTPException(404), "not_found"),
        (HTTPException(405), "method_not_allowed"),
        (HTTPException(400, MARKER), "malformed_request"),
        (HTTPException(418), "malformed_request"),
        (ClientDisconnect(), "malformed_request"),
        (KeyError(MARKER), "internal_error"),
        (
            RequestValidationError([{"loc": ("query",), "type": "x", "msg": "no"}]),
            "invalid_parameter",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_problems_error_of_a_framework_gets_a_code(error, code):
    assert code_of(error) == code
    assert MARKER not in json.dumps(problem_document(error, "id"))


def test_problems_long_detail_is_cut():
    response = problem_response(errors.InvalidParameter("x" * 10_000), "id")

    assert len(response.body) <= 1024


def test_problems_lines_to_write_into_the_repository_file_are_not_cut():
    error = contract_errors.RepositoryFileUnwritable("x" * 4_000)

    assert len(problem_document(error, "id")["detail"]) == 4_000


def test_problems_error_without_message_gets_the_title():
    document = problem_document(errors.BodyTooLarge(), "id")

    assert document["detail"] == PROBLEMS["body_too_large"].title


def test_problems_overload_has_a_retry_after_header():
    response = problem_response(errors.Overloaded("full", retry_after_s=7), "id")

    assert response.headers["retry-after"] == "7"


def test_problems_unknown_path_is_not_found(client):
    assert_problem(client.get(f"/{MARKER}"), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/classify", "POST"),
        ("PUT", "/v1/models/tiny/classify", "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("OPTIONS", "/livez", "GET, HEAD"),
        ("POST", "/docs/assets/x", "GET, HEAD"),
        (MARKER, "/v1/classify", "POST"),
    ],
)
def test_problems_wrong_method_answers_405_with_the_allowed_one(client, method, path, allowed):
    response = client.request(method, path)

    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed
    assert (
        response.json()["detail"] == f"The method is not allowed for this path; allowed: {allowed}"
    )


@pytest.mark.parametrize("path", ["/v1/models/", "/livez/", "//v1/models", "/v1/%2e%2e/metrics"])
def test_problems_almost_right_path_is_not_redirected(client, path):
    assert_problem(client.get(path), 404, "not_found")


def handler_raising(error: BaseException):
    async def handler() -> None:
        raise error

    return handler


def test_problems_handler_that_raises_answers_internal_error(fresh_client, caplog):
    fresh_client.app.add_api_route("/raise", handler_raising(KeyError(MARKER)))
    with caplog.at_level(logging.INFO):
        response = fresh_client.get("/raise")

    assert_problem(response, 500, "internal_error")
    (line,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert line.request_id == response.json()["request_id"]
    assert line.exc_info


def test_problems_handler_that_fails_during_its_response_closes_the_connection(fresh_client):
    """The status is sent, so it is too late for a problem. Raising makes the server disconnect."""

    async def fail_during_response(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        raise KeyError(MARKER)

    fresh_client.app.mount("/half", fail_during_response)

    with pytest.raises(KeyError):
        fresh_client.portal.call(call, fresh_client.app, [b""], "", "/half/")


def test_problems_handler_that_fails_after_its_response_changes_nothing(fresh_client):
    async def fail_after_response(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})
        raise KeyError(MARKER)

    fresh_client.app.mount("/whole", fail_after_response)

    assert fresh_client.get("/whole/").status_code == 200


@pytest.mark.anyio
async def test_lingering_response_discards_the_rest_of_the_body_before_it_completes():
    log: list[str] = []
    messages = [{"type": "http.request", "body": b"x", "more_body": True}] * 3
    messages += [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        log.append("receive")
        return messages.pop(0)

    async def send(message):
        log.append(f"send {message.get('more_body', 'head')}")

    response = problem_response(errors.BodyTooLarge("too large"), "id")
    await response({"type": "http"}, receive, send)

    assert log == ["send head", "send True", *["receive"] * 4, "send False"]


@pytest.mark.anyio
async def test_lingering_response_ends_when_the_client_disconnects():
    sent = []

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await problem_response(errors.BodyTooLarge("too large"), "id")({"type": "http"}, receive, send)

    assert sent[-1]["more_body"] is False


@pytest.mark.anyio
@pytest.mark.parametrize("bound", ["_LINGER_S", "_LINGER_BYTES"])
async def test_lingering_response_is_bounded(monkeypatch, bound):
    monkeypatch.setattr(problems, bound, 0.001)
    sent = []

    async def receive():
        if bound == "_LINGER_S":
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message):
        sent.append(message)

    await problem_response(errors.BodyTooLarge("too large"), "id")({"type": "http"}, receive, send)

    assert sent[-1]["more_body"] is False

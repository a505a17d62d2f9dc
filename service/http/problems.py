"""Maps exceptions to error responses: application/problem+json, RFC 9457.

Two members are our own: `code`, which is stable and meant for programs, and `request_id`. A problem
never contains the client's input, a class name or a traceback, and no path except on the admin port.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from contract import errors as contract_errors
from service import errors

MEDIA_TYPE: Final = "application/problem+json"
_MAX_DETAIL_CHARACTERS: Final = 500
_MAX_REPOSITORY_DETAIL: Final = 8_000
_ALLOW_MORE_TIME: Final = (
    "allow more time with X-Request-Timeout-Ms, or with CONVSERVE_REQUEST_TIMEOUT_S on the server"
)
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 64_000_000  # three times the default max_body_bytes


@dataclass(frozen=True, slots=True)
class Problem:
    """The fixed part of an error response; one for each code."""

    status: int
    title: str  # also the reason phrase when the protocol itself responds
    close: bool = False  # the body is not read to its end, so the connection cannot be reused
    picture: bool = False  # one picture can get it, while others of its request are answered
    admin: bool = False  # only the admin port answers with it


# Every code a client can get, in the order of docs/reference/errors.md.
PROBLEMS: Final[dict[str, Problem]] = {
    "malformed_request": Problem(400, "The request cannot be parsed", picture=True),
    "unauthorized": Problem(401, "The token is missing or wrong", admin=True),
    "not_found": Problem(404, "No resource at this path"),
    "model_not_found": Problem(404, "The model or version is not served here"),
    "method_not_allowed": Problem(405, "The method is not allowed for this path"),
    "request_timeout": Problem(408, "The request did not arrive in time", close=True),
    "change_refused": Problem(409, "The change is not allowed", admin=True),
    "repository_file_invalid": Problem(409, "The repository file is not valid", admin=True),
    "repository_file_unwritable": Problem(409, "The repository file cannot be written", admin=True),
    "body_too_large": Problem(413, "The body is too large", close=True),
    "unsupported_media_type": Problem(415, "The format is not supported", picture=True),
    "image_undecodable": Problem(422, "The image cannot be decoded", picture=True),
    "image_truncated": Problem(422, "The image is truncated", picture=True),
    "image_too_many_pixels": Problem(422, "The image has too many pixels", picture=True),
    "image_too_complex": Problem(422, "The image is too complex", picture=True),
    "image_bad_dimensions": Problem(422, "The image has unusable dimensions", picture=True),
    "invalid_parameter": Problem(422, "A parameter is invalid", picture=True),
    "headers_too_large": Problem(431, "The request head is too large", close=True),
    "internal_error": Problem(500, "The service failed", picture=True),
    "repository_unreadable": Problem(500, "The model repository cannot be read", admin=True),
    "overloaded": Problem(503, "The service is overloaded", picture=True),
    "draining": Problem(503, "The service is shutting down", close=True, picture=True),
    "model_not_ready": Problem(503, "The model is not ready", picture=True),
    "worker_lost": Problem(503, "The worker process ended", picture=True),
    "deadline_exceeded": Problem(504, "The deadline has passed", picture=True),
}

# Everything else is a bug and is logged with its traceback.
EXPECTED_ERRORS: Final = (
    errors.ServiceError,
    contract_errors.ContractError,
    HTTPException,
    RequestValidationError,
)

# Their messages are written for clients. Those of `ModelError` are not.
_WITH_DETAIL: Final = (
    errors.ServiceError,
    contract_errors.ImageError,
    contract_errors.RepositoryError,
)

_BY_HTTP_STATUS: Final = {404: "not_found", 405: "method_not_allowed"}


class ProblemDocument(BaseModel):
    """An error response (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    request_id: str


def code_of(error: BaseException) -> str:
    """Returns the code of an exception; unexpected ones are `internal_error`."""
    if isinstance(error, errors.ServiceError | contract_errors.ContractError):
        return error.code
    if isinstance(error, RequestValidationError):
        return "invalid_parameter"
    if isinstance(error, HTTPException):
        return _BY_HTTP_STATUS.get(error.status_code, "malformed_request")
    if isinstance(error, ClientDisconnect):
        return "malformed_request"
    return "internal_error"


def public_code_of(error: BaseException) -> str:
    # Clients cannot do anything about errors of a model's files.
    code = code_of(error)
    return code if code in PROBLEMS else "internal_error"


def problem_document(error: BaseException, request_id: str) -> dict[str, Any]:
    code = public_code_of(error)
    problem = PROBLEMS[code]
    return {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "code": code,
        "detail": _detail(error, problem)[: _max_characters(error)],
        "request_id": request_id,
    }


class LingeringResponse(Response):
    """Sends its body at once, then discards the rest of the request before it completes.

    Closing a connection with unread data resets it. The reset can overtake the response, and the
    client would see a broken pipe instead of the problem.
    """

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await send({"type": "http.response.body", "body": self.body, "more_body": True})

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await _discard(receive)

        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    discarded = 0
    while discarded < _LINGER_BYTES:
        message = await receive()
        discarded += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def problem_response(error: BaseException, request_id: str, *, linger: bool = True) -> Response:
    """Returns the response for an exception, with Retry-After, Allow and Connection where needed.

    `linger=False` skips the wait for the rest of the request, for a server that is stopping.
    """
    document = problem_document(error, request_id)

    headers = {}
    if isinstance(error, errors.Unavailable):
        headers["Retry-After"] = str(error.retry_after_s)
    if allowed := _allowed(error):
        headers["Allow"] = allowed
    if isinstance(error, errors.Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    problem = PROBLEMS[document["code"]]
    if problem.close:
        headers["Connection"] = "close"

    response_class = LingeringResponse if problem.close and linger else Response
    return response_class(json.dumps(document), problem.status, headers, media_type=MEDIA_TYPE)


def _allowed(error: BaseException) -> str | None:
    """The methods that are allowed instead."""
    allowed = (
        error.headers.get("Allow") if isinstance(error, HTTPException) and error.headers else None
    )
    if allowed is None:
        return None
    # The edge answers HEAD wherever the application answers GET.
    methods = allowed.split(", ")
    return allowed if "GET" not in methods or "HEAD" in methods else f"{allowed}, HEAD"


def _max_characters(error: BaseException) -> int:
    # These go to the admin port only, with lines to copy into a file.
    ours = isinstance(error, contract_errors.RepositoryError)
    return _MAX_REPOSITORY_DETAIL if ours else _MAX_DETAIL_CHARACTERS


def _detail(error: BaseException, problem: Problem) -> str:
    if isinstance(error, RequestValidationError):
        return _validation_detail(error)
    if allowed := _allowed(error):
        return f"{problem.title}; allowed: {allowed}"
    ours = isinstance(error, _WITH_DETAIL)
    detail = str(error) if ours and str(error) else problem.title
    late = isinstance(error, errors.DeadlineExceeded)
    return f"{detail}; {_ALLOW_MORE_TIME}" if late else detail


def _validation_detail(error: RequestValidationError) -> str:
    # The field and what is wrong with it, never the value that was sent.
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return f"{where}: {broken_rule(first)}" if where else broken_rule(first)


def broken_rule(error: Mapping[str, Any]) -> str:
    """Returns what is wrong, from an error of pydantic, without the name of a Python exception."""
    return str(error["msg"]).removeprefix("Value error, ")

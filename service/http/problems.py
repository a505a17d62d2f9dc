"""From exceptions to answers: every error of the service leaves through `problem_response`.

The shape is RFC 9457 (application/problem+json) with two members of ours: `code`, which is stable
and what programs should look at, and `request_id`. A problem never contains the input, a path, a
class name or a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
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
_MAX_DETAIL: Final = 500
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 64_000_000


@dataclass(frozen=True, slots=True)
class Problem:
    """What an error looks like from outside."""

    status: int
    title: str
    close: bool = False  # the rest of the request is not read, so the connection cannot go on


PROBLEMS: Final[dict[str, Problem]] = {
    "malformed_request": Problem(400, "The request cannot be parsed"),
    "not_found": Problem(404, "There is nothing at this path"),
    "model_not_found": Problem(404, "The model or version is not served"),
    "method_not_allowed": Problem(405, "The method is not allowed here"),
    "request_timeout": Problem(408, "The request did not arrive in time", close=True),
    "body_too_large": Problem(413, "The body is too large", close=True),
    "unsupported_media_type": Problem(415, "The format is not accepted"),
    "image_undecodable": Problem(422, "The image cannot be decoded"),
    "image_truncated": Problem(422, "The image is truncated"),
    "image_too_many_pixels": Problem(422, "The image has too many pixels"),
    "image_too_complex": Problem(422, "The image is too complex"),
    "image_bad_dimensions": Problem(422, "The image has unusable dimensions"),
    "invalid_parameter": Problem(422, "A parameter is not valid"),
    "headers_too_large": Problem(431, "The request head is too large", close=True),
    "internal_error": Problem(500, "The service failed"),
    "overloaded": Problem(503, "The service is overloaded"),
    "draining": Problem(503, "The service is shutting down", close=True),
    "model_not_ready": Problem(503, "The model is not ready"),
    "worker_lost": Problem(503, "The worker process was lost"),
    "deadline_exceeded": Problem(504, "The deadline passed"),
}
"""Every code a client can meet. A code without a row here fails tests/service/api."""

FORESEEN: Final = (
    errors.ServiceError,
    contract_errors.ContractError,
    HTTPException,
    RequestValidationError,
)
"""Exceptions that are an answer; any other is a fault of ours."""

_INTERNAL = Problem(500, "The service failed")
_BY_HTTP_STATUS: Final = {404: "not_found", 405: "method_not_allowed"}


class ProblemDocument(BaseModel):
    """The error document, for the API's description."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    request_id: str


def code_of(error: BaseException) -> str:
    """Returns the stable code of an exception; anything unforeseen is `internal_error`."""
    if isinstance(error, errors.ServiceError | contract_errors.ContractError):
        return error.code
    if isinstance(error, RequestValidationError):
        return "invalid_parameter"
    if isinstance(error, HTTPException):
        return _BY_HTTP_STATUS.get(error.status_code, "malformed_request")
    if isinstance(error, ClientDisconnect):
        return "malformed_request"
    return "internal_error"


def problem_document(error: BaseException, request_id: str) -> dict[str, Any]:
    """Returns the members of the problem for an exception."""
    code = code_of(error)
    problem = PROBLEMS.get(code, _INTERNAL)
    return {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "code": code if code in PROBLEMS else "internal_error",
        "detail": _detail(error, problem)[:_MAX_DETAIL],
        "request_id": request_id,
    }


class LingeringResponse(Response):
    """Answers at once, then discards what the client is still sending, and only then closes.

    Closing a connection with unread data resets it, and the reset can overtake the answer: the
    client would see a broken pipe instead of the problem.
    """

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the whole answer, reads on within bounds, and completes."""
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
    """Returns the answer for an exception, with the headers its status calls for.

    Args:
        error: any.
        request_id: goes into the answer.
        linger: whether the rest of a request that is not read may be waited for.
    """
    document = problem_document(error, request_id)
    headers = {}
    if isinstance(error, errors.Unavailable):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, HTTPException) and error.headers and "Allow" in error.headers:
        headers["Allow"] = error.headers["Allow"]
    problem = PROBLEMS[document["code"]]
    if problem.close:
        headers["Connection"] = "close"
    response_class = LingeringResponse if problem.close and linger else Response
    return response_class(json.dumps(document), problem.status, headers, media_type=MEDIA_TYPE)


def _detail(error: BaseException, problem: Problem) -> str:
    if isinstance(error, RequestValidationError):
        return _validation_detail(error)
    ours = isinstance(error, errors.ServiceError | contract_errors.ImageError)
    return str(error) if ours and str(error) else problem.title


def _validation_detail(error: RequestValidationError) -> str:
    # Only the field and what is wrong with it: never the value that was sent.
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return f"{where}: {first['msg']}" if where else str(first["msg"])

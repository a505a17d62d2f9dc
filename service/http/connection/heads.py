"""Rules for request heads, and the raw response for requests that the application never sees."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Sequence
from typing import Final

from service.http.problems import MEDIA_TYPE, PROBLEMS

MAX_HEADERS: Final = 100

log = logging.getLogger("service.access")


class RequestHeadRejected(Exception):
    """A request head breaks a rule; raised in a parser callback, it stops the parser."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def check_head(method: bytes, version: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Checks what the parser accepts but RFC 9112 or this server does not.

    Raises:
        RequestHeadRejected: wrong HTTP version, Host field or transfer coding, or a CONNECT request.
    """
    if version not in ("1.0", "1.1"):
        raise RequestHeadRejected("malformed_request", "the request is not valid HTTP/1.1")
    if method == b"CONNECT":
        raise RequestHeadRejected("malformed_request", "CONNECT: this server is not a proxy")

    hosts, codings = 0, []
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"transfer-encoding":
            codings.append(value.strip().lower())
    if hosts > 1 or (not hosts and version == "1.1"):
        raise RequestHeadRejected(
            "malformed_request", f"the request must have one Host field, got {hosts}"
        )

    # Other codings are not decoded here, so the application would read a wrong body.
    if codings and codings != [b"chunked"]:
        raise RequestHeadRejected("malformed_request", "Transfer-Encoding must be chunked")


def refusal_bytes(code: str, detail: str, client: str, *, to_head: bool = False) -> bytes:
    """Logs a refusal and returns the whole response: no middleware runs for it.

    `to_head`: the request was a HEAD, whose response has no body.
    """
    problem = PROBLEMS[code]
    request_id = secrets.token_hex(8)
    body = json.dumps(
        {
            "type": "about:blank",
            "title": problem.title,
            "status": problem.status,
            "code": code,
            "detail": detail,
            "request_id": request_id,
        }
    ).encode()
    head = (
        f"HTTP/1.1 {problem.status} {problem.title}\r\n"
        f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
        f"x-request-id: {request_id}\r\nx-content-type-options: nosniff\r\n"
        "cache-control: no-store\r\nconnection: close\r\n\r\n"
    )

    log.info(
        "request refused",
        extra={"request_id": request_id, "status": problem.status, "code": code, "client": client},
    )
    return head.encode() if to_head else head.encode() + body

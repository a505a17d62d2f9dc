"""Documents that are written once and sent many times.

Building the labels of 1,000 classes takes 8 ms of the event loop, and the list of models 30 ms. Anybody
may ask for them at any rate, so they must cost as little as a health check.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary

from starlette.requests import Request
from starlette.responses import Response


class PreparedDocuments:
    """Documents by what they describe; they go when it goes."""

    def __init__(self) -> None:
        # Weak, because a repository that was replaced must not stay in memory with its sessions.
        self._of: WeakKeyDictionary[Hashable, dict[Hashable, tuple[bytes, str]]] = (
            WeakKeyDictionary()
        )

    def response(
        self,
        request: Request,
        described: Hashable,
        key: Hashable,
        write: Callable[[], bytes | str],
        media_type: str = "application/json",
    ) -> Response:
        """Returns a document as a response, or 304 if the client has it.

        Args:
            request: its If-None-Match names the documents that the client has.
            described: an immutable object that the document is about.
            key: tells the documents about one object apart; whatever else is in the document has to
                be in the key.
            write: writes the document, if that has not been done.
            media_type: of the document.
        """
        documents = self._of.setdefault(described, {})
        if key not in documents:
            written = write()
            body = written.encode() if isinstance(written, str) else written
            documents[key] = body, f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        body, etag = documents[key]

        # A cache may keep it, but has to ask each time.
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if _has(request, etag):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type=media_type)


def _has(request: Request, etag: str) -> bool:
    listed = ",".join(request.headers.getlist("if-none-match")).split(",")
    return any(one.strip().removeprefix("W/") in ("*", etag) for one in listed)

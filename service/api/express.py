"""The short way to classification: past the framework's routing, to the very same handler.

FastAPI resolves a route, its dependencies and its parameters anew for each request, which takes
longer than everything else that Python does for a picture. A plain POST to a classify path needs
none of it; whatever is less plain (other options in the query, odd paths) takes the usual way and
gets the usual answer.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from service.api.dialects.native import classify_upload
from service.api.parts import Parts
from service.api.payload import Options
from service.serving.classifier import Choice

_PATH: Final = re.compile(
    r"/v1/(?:models/(?P<name>[A-Za-z0-9._-]+)/(?:versions/(?P<version>[1-9][0-9]{0,8})/)?)?classify"
)
_QUERY: Final = re.compile(rb"(?:top_k=([1-9][0-9]{0,3}))?")
_TEMPLATES: Final = (
    "/v1/classify",
    "/v1/models/{name}/classify",
    "/v1/models/{name}/versions/{version}/classify",
)

Handler = Callable[[Request, str], Awaitable[Response]]


class Express:
    """Recognises plain requests for a classification."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def find(self, scope: Scope) -> tuple[str, Handler] | None:
        """Returns the route's template and a handler of (request, request id), or None."""
        if scope["method"] != "POST" or scope.get("root_path"):
            return None
        path, query = _PATH.fullmatch(scope["path"]), _QUERY.fullmatch(scope["query_string"])
        if path is None or query is None:
            return None
        name, version = path.groups()
        choice = Choice(name, int(version) if version else None)
        options = _options(query[1])
        parts = self._parts

        async def handle(request: Request, request_id: str) -> Response:
            return await classify_upload(request, parts, request_id, options, choice)

        return _TEMPLATES[(name is not None) + (version is not None)], handle


@lru_cache(maxsize=128)
def _options(top_k: bytes | None) -> Options:
    return Options(top_k=int(top_k)) if top_k else Options()

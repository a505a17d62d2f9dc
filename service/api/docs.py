"""/docs: Swagger UI from installed files, so that it works without a CDN.

Its links are relative, so they also work below the prefix of a proxy that strips it.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Final

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from service.api.dependencies import dependencies_of

_ASSETS: Final = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
# FastAPI writes one inline script into the page. Everything else must come from this server.
_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/docs/assets/{name}")
async def asset(request: Request, name: str) -> Response:
    media_type = _ASSETS.get(name)
    if media_type is None:
        raise HTTPException(404)
    file = resources.files("fastapi_offline") / "static" / name
    prepared = dependencies_of(request).documents
    return prepared.response(request, request.app, ("asset", name), file.read_bytes, media_type)


@router.get("/openapi.json")
async def openapi(request: Request) -> Response:
    app = request.app

    def write() -> str:
        return json.dumps(app.openapi(), ensure_ascii=False, separators=(",", ":"))

    return dependencies_of(request).documents.response(request, app, "openapi", write)


@router.get("/docs")
async def docs() -> HTMLResponse:
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="convserve",
        swagger_js_url="docs/assets/swagger-ui-bundle.js",
        swagger_css_url="docs/assets/swagger-ui.css",
        swagger_favicon_url="docs/assets/favicon.png",
    )
    page.headers["Content-Security-Policy"] = _POLICY
    return page


@router.get("/")
async def root(request: Request) -> RedirectResponse:
    # Relative, or with the whole prefix, which also works for a prefix without its last slash.
    root_path = dependencies_of(request).root_path
    return RedirectResponse(f"{root_path}/docs" if root_path else "docs")

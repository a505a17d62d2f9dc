"""/docs: the interactive description of the API, from files of this machine, without a CDN."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.staticfiles import StaticFiles
from starlette.responses import HTMLResponse, RedirectResponse

ASSETS_PATH: Final = "/docs/assets"
# The page has one inline script, which FastAPI writes; everything else comes from this server.
_POLICY: Final = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


def docs_assets() -> StaticFiles:
    """Returns the application that serves Swagger UI's files out of the fastapi-offline package."""
    return StaticFiles(packages=[("fastapi_offline", "static")])


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Answers Swagger UI."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="convserve",
        swagger_js_url=f"{ASSETS_PATH}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS_PATH}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS_PATH}/favicon.png",
    )
    page.headers["Content-Security-Policy"] = _POLICY
    return page


@router.get("/")
async def root() -> RedirectResponse:
    """Sends a browser to the documentation."""
    return RedirectResponse("/docs")

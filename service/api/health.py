"""Health checks and metrics.

Liveness says whether a restart would help, readiness whether to send requests here. Both only read
the state of the lanes, so they respond under any load.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Response

from service.api.dependencies import Deps
from service.api.openapi import ERRORS
from service.api.schemas import HealthDocument
from service.errors import ModelNotReady

_TEXT: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}}
}

router = APIRouter(tags=["health"], responses={503: ERRORS[503]})


@router.get("/livez", summary="Liveness")
async def livez(deps: Deps) -> HealthDocument:
    """Succeeds unless a lane is dead or stuck and only a restart would help."""
    if not deps.is_alive():
        raise ModelNotReady("a lane is dead or stuck; restart the process")
    return HealthDocument(status="alive")


@router.get("/readyz", summary="Readiness")
async def readyz(deps: Deps) -> HealthDocument:
    """Succeeds while the default model can answer; fails once shutdown begins."""
    reason = deps.not_ready(None)
    if reason is not None:
        raise reason
    return HealthDocument(status="ready")


@router.get("/metrics", summary="Prometheus metrics", response_class=Response, responses=_TEXT)
async def metrics(deps: Deps) -> Response:
    """Returns all metrics in the Prometheus text format."""
    return Response(deps.metrics.page(), media_type=deps.metrics.content_type)

"""Health checks and metrics.

Liveness says whether restarting would help; readiness says whether to send requests. They read the
state of the lanes and run no inference, so they answer under any load.
"""

from __future__ import annotations

from fastapi import APIRouter, Response

from service.api.dependencies import Deps
from service.api.routes import ERRORS
from service.api.schemas import HealthDocument
from service.errors import ModelNotReady

router = APIRouter(tags=["health"], responses={503: ERRORS[503]})


@router.get("/livez", summary="Liveness")
async def livez(deps: Deps) -> HealthDocument:
    """Passes while no lane is dead or stuck for good."""
    if not deps.is_alive():
        raise ModelNotReady("a lane is dead or stuck; the process should be restarted")
    return HealthDocument(status="alive")


@router.get("/readyz", summary="Readiness")
async def readyz(deps: Deps) -> HealthDocument:
    """Passes once every model is loaded, checked and warm, until the process is told to stop."""
    reason = deps.not_ready()
    if reason is not None:
        raise reason
    return HealthDocument(status="ready")


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(deps: Deps) -> Response:
    """Answers all metrics in the Prometheus text format."""
    return Response(deps.metrics.render(), media_type=deps.metrics.content_type)

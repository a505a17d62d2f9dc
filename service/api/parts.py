"""What the handlers share: one object, made in `app.create_app` and found through the request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Request

from service.api.payload import BodyLimits
from service.http.deadlines import Deadlines
from service.serving.admission import Admission
from service.serving.classifier import Classifier
from service.system.metrics import Metrics

REQUEST_ID: Final = "convserve.request_id"
"""Where in the ASGI scope the edge puts the request's id."""


@dataclass(slots=True)
class Parts:
    """The parts of one application.

    Attributes:
        classifier: the use case.
        admission: the door.
        metrics: what is counted.
        body_limits: how large a body may be and how long it may take.
        deadlines: how long requests may take.
        not_ready: why the service is not ready, or None.
        is_alive: whether every lane of every model runs.
    """

    classifier: Classifier
    admission: Admission
    metrics: Metrics
    body_limits: BodyLimits
    deadlines: Deadlines
    not_ready: Callable[[], Exception | None]
    is_alive: Callable[[], bool]


# Coroutines, because FastAPI runs plain functions in a thread.
async def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


async def _request_id(request: Request) -> str:
    request_id: str = request.scope[REQUEST_ID]
    return request_id


PartsDep = Annotated[Parts, Depends(_parts)]
RequestIdDep = Annotated[str, Depends(_request_id)]

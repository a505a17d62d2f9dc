"""What the handlers share: one object, made in `app.create_app` and found through the request."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.admission import Admission
from service.api.payload import BodyLimits
from service.classifier import Classifier
from service.metrics import Metrics


@dataclass(slots=True)
class Parts:
    """The parts of one application.

    Attributes:
        classifier: the use case.
        admission: the door.
        metrics: what is counted.
        prepare_pool: where bodies that are costly to parse go, apart from the event loop.
        body_limits: how large a body may be and how long it may take.
        request_timeout_s: seconds from the complete body to the answer.
        clock: monotonic seconds, the batchers' clock.
        not_ready: why the service is not ready, or None.
        is_alive: whether every lane of every model runs.
    """

    classifier: Classifier
    admission: Admission
    metrics: Metrics
    prepare_pool: Executor
    body_limits: BodyLimits
    request_timeout_s: float
    clock: Callable[[], float]
    not_ready: Callable[[], Exception | None]
    is_alive: Callable[[], bool]


# Coroutines, because FastAPI runs plain functions in a thread.
async def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


async def _request_id(request: Request) -> str:
    request_id: str = request.scope["convserve.request_id"]
    return request_id


PartsDep = Annotated[Parts, Depends(_parts)]
RequestIdDep = Annotated[str, Depends(_request_id)]

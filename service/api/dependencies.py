"""What the handlers share: one object, made in `app.create_app` and found through the request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.api.payload import BodyLimits
from service.http.deadlines import Deadlines
from service.serving.admission import Admission
from service.serving.classifier import Classifier
from service.system.metrics import Metrics


@dataclass(slots=True)
class Dependencies:
    """What the handlers of one application need.

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


def dependencies_of(request: Request) -> Dependencies:
    deps: Dependencies = request.app.state.dependencies
    return deps


async def _dependencies(
    request: Request,
) -> Dependencies:  # a coroutine: FastAPI runs functions in a thread
    return dependencies_of(request)


Deps = Annotated[Dependencies, Depends(_dependencies)]

"""What the handlers share: one object, created in `app.create_app` and reached through the request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from service.api.payload import BodyLimits
from service.api.prepared import PreparedDocuments
from service.http.deadlines import Deadlines
from service.serving.admission import Admission
from service.serving.classifier import Classifier
from service.system.metrics import Metrics


@dataclass(slots=True)
class Dependencies:
    """What the handlers of one application need."""

    classifier: Classifier
    admission: Admission
    metrics: Metrics
    body_limits: BodyLimits
    deadlines: Deadlines
    not_ready: Callable[[str | None], Exception | None]  # of a model, or of the default
    is_alive: Callable[[], bool]
    root_path: str = ""  # under which a proxy serves the application
    documents: PreparedDocuments = field(default_factory=PreparedDocuments)


def dependencies_of(request: Request) -> Dependencies:
    deps: Dependencies = request.app.state.dependencies
    return deps


# A coroutine, because FastAPI would run a plain function in a thread.
async def _dependencies(request: Request) -> Dependencies:
    return dependencies_of(request)


Deps = Annotated[Dependencies, Depends(_dependencies)]

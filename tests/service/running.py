"""Reaches into a running application, where a test must hold, watch or break what runs the network."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.app import Service
from service.batching.batcher import Batcher
from service.batching.lane import RestartReason, RowResult
from service.models.engine import Engine
from service.models.repository import Repository
from tests.fakes import FakeEngine
from tests.tinymodel import SIDE_PX


class PictureEngine(FakeEngine):
    """A fake engine that takes pictures and finds nothing in them."""

    def run(self, batch: NDArray[Any], run: object = None) -> NDArray[np.float32]:
        return super().run(batch.reshape(len(batch), -1)[:, :1], run)

    def _answer(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        return np.full((len(batch), 3), 1 / 3, np.float32)


def batcher_of(client: Any) -> Batcher:
    service: Service = client.app.state.service
    return service._backend.batcher


def run_by(service: Service, engine: Engine) -> None:
    """Has every version run by this engine, from the first picture on."""
    backend = service._backend
    backend.repository = Repository(
        [replace(version, engine=engine) for version in backend.repository.versions()]
    )


def occupy(client: Any, engine: FakeEngine) -> Future[RowResult]:
    """Has a lane run one picture and stay in the engine."""
    service: Service = client.app.state.service
    run_by(service, engine)
    engine.hold()
    row = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    version = service.repository.get()
    running: Future[RowResult] = client.portal.start_task_soon(
        batcher_of(client).submit, version, row, math.inf
    )
    engine.entered.acquire()
    return running


def lose_lanes(client: Any) -> None:
    """Lets every lane be lost as if those before it had been too."""

    def lose() -> None:
        lanes = batcher_of(client)._lanes
        for place in lanes._places:
            assert place.lane is not None
            place.delay_s = 60.0
            lanes._replace(place.lane, RestartReason.DIED)

    client.portal.call(lose)

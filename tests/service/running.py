"""Helpers that reach into a running application to block, watch or break its lanes."""

from __future__ import annotations

import math
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.batching.batcher import Batcher
from service.batching.lane import RestartReason, RowResult
from service.models.engine import Engine
from service.models.repository import Repository
from service.running import Service
from tests.fakes import FakeEngine
from tests.tinymodel import SIDE_PX


class PictureEngine(FakeEngine):
    """A fake engine for pictures that gives every class the same probability."""

    def run(self, batch: NDArray[Any], run: object = None) -> NDArray[np.float32]:
        return super().run(batch.reshape(len(batch), -1)[:, :1], run)

    def _answer(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        return np.full((len(batch), 3), 1 / 3, np.float32)


def batcher_of(client: Any) -> Batcher:
    service: Service = client.app.state.service
    return service._backend.batcher


def use_engine(service: Service, engine: Engine) -> None:
    """Makes every version run on this engine."""
    backend = service._backend
    backend.repository = Repository(
        [replace(version, engine=engine) for version in backend.repository.versions()]
    )


def occupy(client: Any, engine: FakeEngine) -> Future[RowResult]:
    """Runs one picture in a lane, which stays in the engine until `engine.release()`."""
    service: Service = client.app.state.service
    use_engine(service, engine)
    engine.hold()
    row = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    version = service.repository.get()
    running: Future[RowResult] = client.portal.start_task_soon(
        batcher_of(client).submit, version, row, math.inf
    )
    engine.entered.acquire()
    return running


def lose_lanes(client: Any) -> None:
    """Loses every lane, with a long backoff before its replacement starts."""

    def lose_all() -> None:
        lanes = batcher_of(client)._lanes
        for slot in lanes._slots:
            assert slot.lane is not None
            slot.backoff_s = 60.0
            lanes._replace(slot.lane, RestartReason.DIED)

    client.portal.call(lose_all)

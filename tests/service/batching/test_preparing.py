from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from service.batching.preparing import LocalAnswerer

from contract.errors import ImageError
from contract.images import ImageLimits
from contract.preprocessing import decode_for
from service.batching import preparing as module
from service.batching.batcher import Batcher, BatchLimits
from service.errors import DeadlineExceeded, Overloaded
from service.models.repository import RunPlan, load_version
from tests import tinymodel
from tests.fakes import FakeClock

pytestmark = pytest.mark.anyio

RED = tinymodel.picture("red")
FOREVER = float("inf")


@asynccontextmanager
async def answering(models_dir: Any, **options: Any) -> AsyncIterator[LocalAnswerer]:
    version = load_version(models_dir, "tiny", 1, RunPlan("cpu"))
    clock = options.pop("clock", FakeClock())
    batcher = Batcher(version.engine, BatchLimits(), clock=clock)
    batcher.start()
    limits = options.pop("limits", ImageLimits())
    with ThreadPoolExecutor(1, "apart") as apart:
        yield LocalAnswerer(batcher, version.manifest, limits, apart, clock=clock, **options)
        await batcher.stop()


@pytest.fixture
def prepared_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of the thread of every decoding."""
    names: list[str] = []

    def noting(*args: Any) -> Any:
        names.append(threading.current_thread().name.rstrip("_0123456789"))
        return decode_for(*args)

    monkeypatch.setattr(module, "decode_for", noting)
    return names


async def test_local_answers_a_picture_with_the_models_probabilities(models_dir):
    async with answering(models_dir) as answerer:
        answered = await answerer.answer(RED, FOREVER)

    assert int(np.argmax(answered.probabilities)) == 0
    assert (answered.batch_size, answered.queue_s) == (1, 0.0)


async def test_local_usual_picture_is_prepared_on_its_lane(models_dir, prepared_on):
    async with answering(models_dir) as answerer:
        await answerer.answer(RED, FOREVER)

    assert prepared_on == ["lane-"]


async def test_local_costly_picture_is_prepared_apart(models_dir, prepared_on, monkeypatch):
    monkeypatch.setattr(module, "COSTLY_PIXELS", 1)
    async with answering(models_dir) as answerer:
        await answerer.answer(RED, FOREVER)

    assert prepared_on == ["apart"]


async def test_local_gpu_lane_prepares_nothing(models_dir, prepared_on):
    async with answering(models_dir, on_lanes=False) as answerer:
        await answerer.answer(RED, FOREVER)

    assert prepared_on == ["apart"]


@pytest.mark.parametrize("on_lanes", [True, False], ids=["on_lane", "apart"])
async def test_local_bad_picture_fails_alone(models_dir, on_lanes):
    async with answering(models_dir, on_lanes=on_lanes) as answerer:
        jobs = [answerer.answer(image, FOREVER) for image in (RED, RED[:40], b"x", RED)]
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)

    assert [isinstance(one, ImageError) for one in outcomes] == [False, True, True, False]


async def test_local_limits_reach_the_decoder(models_dir):
    async with answering(models_dir, limits=ImageLimits(max_pixels=10)) as answerer:
        with pytest.raises(ImageError, match="megapixels"):
            await answerer.answer(RED, FOREVER)


async def test_local_out_of_memory_is_overload(models_dir, monkeypatch):
    def decode(*_args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "decode_for", decode)
    async with answering(models_dir) as answerer:
        with pytest.raises(Overloaded, match="memory"):
            await answerer.answer(RED, FOREVER)


@pytest.mark.parametrize("on_lanes", [True, False], ids=["on_lane", "apart"])
async def test_local_expired_picture_is_not_decoded(models_dir, prepared_on, on_lanes):
    clock = FakeClock()
    async with answering(models_dir, on_lanes=on_lanes, clock=clock) as answerer:
        with pytest.raises(DeadlineExceeded):
            await answerer.answer(RED, clock() - 1)

    assert prepared_on == []

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from service.batching.batcher import Batcher, BatchLimits
from service.tuning import (
    Candidates,
    Interrupted,
    Point,
    Tuner,
    Tuning,
    choose,
    measure,
    sizes_up_to,
)
from tests.fakes import FakeEngine

pytestmark = pytest.mark.anyio

ROW = np.array([0.5], np.float32)


class TickingClock:
    """Seconds that pass by 10 ms at each look."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            self._now_s += 0.01
            return self._now_s


def point(size: int, lanes: int, rate: float) -> Point:
    return Point(size, lanes, 1, rate, 1.0)


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, (1,)), (2, (1, 2)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))]
)
def test_sizes_are_powers_of_two_and_the_largest(largest, sizes):
    assert sizes_up_to(largest) == sizes


@pytest.mark.parametrize(
    ("points", "chosen"),
    [
        ([point(1, 1, 100), point(1, 2, 190), point(8, 2, 195)], (1, 2)),
        ([point(1, 2, 100), point(4, 2, 180), point(8, 2, 185)], (4, 2)),
        ([point(1, 1, 260), point(1, 2, 252)], (1, 2)),
        ([point(1, 1, 260), point(1, 2, 200)], (1, 1)),
        ([point(32, 1, 900), point(1, 2, 100), point(32, 2, 1000)], (32, 2)),
    ],
    ids=["batches_hardly_pay", "batches_pay", "noise", "lanes_hurt", "gpu"],
)
def test_choose_takes_small_batches_and_many_lanes_unless_others_are_clearly_better(points, chosen):
    best = choose(points)

    assert (best.batch_size, best.lanes) == chosen


def test_measure_runs_every_candidate():
    engine = FakeEngine()
    candidates = Candidates(sizes=(1, 4), lanes=(1, 2), threads=1, wide_threads=2)

    points = measure(engine, ROW, candidates, clock=TickingClock())

    ways = [(one.batch_size, one.lanes, one.threads) for one in points]
    assert ways == [(1, 1, 1), (4, 1, 1), (1, 2, 1), (4, 2, 1), (1, 1, 2)]
    assert {len(batch) for batch in engine.batches} == {1, 4}
    assert all(one.images_per_s > 0 and one.run_ms > 0 for one in points)


def test_measure_rate_counts_pictures_of_all_lanes():
    engine = FakeEngine()

    (one,) = measure(engine, ROW, Candidates((4,), (1,), 1, 1), clock=TickingClock())

    # Each run takes one look at the clock, 10 ms, and the end takes one more.
    assert one.run_ms == pytest.approx(10)
    assert one.images_per_s == pytest.approx(400, rel=0.15)


def test_measure_stops_when_a_request_comes():
    quiet = iter([True] * 5)

    with pytest.raises(Interrupted):
        measure(
            FakeEngine(), ROW, Candidates((1,), (1,), 1, 1), is_quiet=lambda: next(quiet, False)
        )


async def tuned(engine: Any, *, is_quiet: Any = lambda: True) -> tuple[Tuning, Batcher]:
    batcher = Batcher(engine, BatchLimits(lanes=1, max_batch_size=1))
    batcher.start()
    tuning = Tuning("waiting", Candidates((1, 2), (2,), 1, 1), lanes=1, max_batch_size=1)
    tuner = Tuner(is_quiet, quiet_s=0.0)
    await tuner.tune(tuning, batcher, engine, ROW)
    tuner.close()
    await batcher.stop()
    return tuning, batcher


async def test_tuner_has_the_batcher_run_as_was_measured():
    tuning, batcher = await tuned(FakeEngine())

    assert tuning.state == "measured"
    assert (batcher.limits.lanes, batcher.limits.max_batch_size) == (2, tuning.max_batch_size)
    assert len(tuning.points) == 2


async def test_tuner_interrupted_tries_again():
    noises = iter([False])

    tuning, _ = await tuned(FakeEngine(), is_quiet=lambda: next(noises, True))

    assert tuning.state == "measured"


async def test_tuner_engine_that_fails_leaves_everything_as_it_was(caplog):
    engine = FakeEngine()
    engine.answer = lambda _batch: 1 / 0  # type: ignore[assignment,return-value]

    tuning, batcher = await tuned(engine)

    assert (tuning.state, tuning.points) == ("failed", [])
    assert (batcher.limits.lanes, batcher.limits.max_batch_size) == (1, 1)
    assert "could not be measured" in caplog.text


async def test_tuner_waits_for_quiet():
    quiet = threading.Event()
    tuner = Tuner(quiet.is_set, quiet_s=0.001)
    engine = FakeEngine()
    batcher = Batcher(engine, BatchLimits())
    batcher.start()
    tuning = Tuning("waiting", Candidates((1, 2), (1,), 1, 1), lanes=1, max_batch_size=1)
    task = asyncio.create_task(tuner.tune(tuning, batcher, engine, ROW))
    for _ in range(50):
        await asyncio.sleep(0)
    before = list(engine.batches)
    quiet.set()
    await task
    tuner.close()
    await batcher.stop()

    assert (before, tuning.state) == ([], "measured")

"""Deadlines of pictures that wait or run: one timer for all of them."""

from __future__ import annotations

import asyncio
import time

import pytest

from contract.predictions import TopK
from service.batching.expiry import ExpiryTimer
from service.batching.lane import QueueEntry, RowResult
from service.errors import DeadlineExceeded
from tests.fakes import FakeClock, FakeEngine
from tests.service.batching.harness import (
    NEVER,
    occupy,
    running,
    settle,
    submit,
    value_of,
    values_of,
)

pytestmark = pytest.mark.anyio


class Bench:
    """A timer on a fake clock; `pass_time` fires it as the event loop would."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.n_expirations = 0
        self.timer = ExpiryTimer(self.clock, self._on_expired)

    def _on_expired(self) -> None:
        self.n_expirations += 1

    def entry(self, seconds: float) -> QueueEntry:
        future: asyncio.Future[RowResult] = asyncio.get_running_loop().create_future()
        entry = QueueEntry(None, self.clock() + seconds, self.clock(), TopK(), future)  # type: ignore[arg-type]
        self.timer.add(entry)
        return entry

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.timer._expire()


def has_expired(entry: QueueEntry) -> bool:
    return entry.future.done() and isinstance(entry.future.exception(), DeadlineExceeded)


async def test_expiry_fails_entries_in_the_order_of_their_deadlines():
    bench = Bench()
    late, early, never = bench.entry(3), bench.entry(1), bench.entry(NEVER)

    bench.pass_time(1)
    first = [has_expired(one) for one in (early, late, never)]
    bench.pass_time(2)

    assert first == [True, False, False]
    assert [has_expired(one) for one in (early, late, never)] == [True, True, False]
    assert bench.n_expirations == 2
    bench.timer.stop()


async def test_expiry_leaves_answered_entries_alone():
    bench = Bench()
    entry = bench.entry(1)
    entry.future.set_result(RowResult([], 0.0, 0.0, 1))

    bench.pass_time(2)

    assert not has_expired(entry)


async def test_expiry_forgets_entries():
    bench = Bench()
    entry = bench.entry(1)

    bench.timer.discard(entry)
    bench.pass_time(2)

    assert not entry.future.done()
    assert bench.n_expirations == 0


async def test_expiry_has_no_timer_without_a_deadline():
    bench = Bench()

    bench.entry(NEVER)

    assert bench.timer._timer is None


async def test_batcher_item_without_an_answer_fails_at_its_deadline_although_its_run_goes_on():
    engine = FakeEngine()
    async with running(engine) as batcher:
        engine.hold()
        task = submit(batcher, 0.25, time.monotonic() + 0.05)

        with pytest.raises(DeadlineExceeded):
            await task


async def test_batcher_expired_item_frees_its_place_in_the_queue():
    engine = FakeEngine()
    async with running(engine, max_queue=1) as batcher:
        busy = await occupy(batcher, engine)
        with pytest.raises(DeadlineExceeded):
            await submit(batcher, 0.25, time.monotonic() + 0.05)

        accepted = submit(batcher, 0.5)
        await settle()
        engine.release()

        assert await values_of([busy, accepted]) == [0.0, 0.5]
        assert engine.batches == [[0.0], [0.5]]


async def test_batcher_items_submitted_in_one_turn_share_a_batch():
    engine = FakeEngine()
    async with running(engine) as batcher:
        answers = await asyncio.gather(*(submit(batcher, value) for value in (0.25, 0.5, 0.75)))

    assert [value_of(one) for one in answers] == [0.25, 0.5, 0.75]
    assert engine.batches == [[0.25, 0.5, 0.75]]

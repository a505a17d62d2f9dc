"""A lane on a thread, without a batcher."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from contract.predictions import TopK
from service.batching.lane import BatchJob, LaneCallbacks, QueueEntry, RowResult, deliver
from service.batching.thread_lane import ThreadLane
from service.errors import DeadlineExceeded
from service.models.engine import Run
from tests.fakes import FakeClock, FakeEngine, FakeVersion

NEVER = float("inf")


class Bench:
    """A lane with a fake engine and a fake clock."""

    def __init__(self, engine: FakeEngine | None = None) -> None:
        self.engine = engine or FakeEngine()
        self.clock = FakeClock()
        self.recipes_run: list[float] = []
        self._done: asyncio.Queue[BatchJob[QueueEntry]] = asyncio.Queue()
        self.lane = ThreadLane(callbacks(lambda _, job: self._done.put_nowait(job)), self.clock)

    def entry(
        self,
        value: float,
        *,
        deadline_s: float = NEVER,
        first: Callable[[], object] = lambda: None,
    ) -> QueueEntry:
        """An entry with a recipe that calls `first` before it returns the row."""

        def recipe() -> np.ndarray[Any, Any]:
            self.recipes_run.append(value)
            first()
            return np.array([value], np.float32)

        future = asyncio.get_running_loop().create_future()
        return QueueEntry(recipe, deadline_s, self.clock(), TopK(), future)

    def interrupt(self) -> None:
        """Like `Lane.interrupt`, but called on the lane's thread and without answering the entries."""
        self.lane.jobs[0].run.interrupt()

    def begin(self, *batch: QueueEntry, all_cores: bool = False) -> None:
        version = FakeVersion(self.engine)
        self.lane.work(BatchJob(version, list(batch), Run(all_cores=all_cores), self.clock()))

    async def work(self, *batch: QueueEntry, all_cores: bool = False) -> BatchJob[QueueEntry]:
        self.begin(*batch, all_cores=all_cores)
        job = await self.done()
        self.lane.close()
        return job

    async def done(self) -> BatchJob[QueueEntry]:
        return await self._done.get()


def new_job(*batch: QueueEntry) -> BatchJob[QueueEntry]:
    return BatchJob(FakeVersion(FakeEngine()), list(batch), Run(), 0.0)


def callbacks(on_done: Callable[..., None]) -> LaneCallbacks:
    return LaneCallbacks(on_done, *[lambda *_: None] * 3)


def outcome(entry: QueueEntry) -> float | str:
    """The entry's value, or the name of its error."""
    if not entry.future.done():
        return "pending"
    if entry.future.cancelled():
        return "cancelled"
    error = entry.future.exception()
    return dict(entry.future.result().ranking)[0] if error is None else type(error).__name__


@pytest.mark.anyio
async def test_lane_deadline_that_passes_between_recipes_skips_the_later_ones():
    bench = Bench()
    slow = bench.entry(0.25, first=lambda: bench.clock.advance(2))
    late = bench.entry(0.5, deadline_s=bench.clock() + 1)
    fresh = bench.entry(0.75, deadline_s=bench.clock() + 60)

    await bench.work(slow, late, fresh)

    assert [outcome(one) for one in (slow, late, fresh)] == [0.25, "DeadlineExceeded", 0.75]
    assert bench.recipes_run == [0.25, 0.75]
    assert bench.engine.batches == [[0.25, 0.75]]


@pytest.mark.anyio
async def test_lane_recipe_of_a_cancelled_entry_is_not_run():
    bench = Bench()
    gone, there = bench.entry(0.25), bench.entry(0.5)
    gone.future.cancel()

    await bench.work(gone, there)

    assert (bench.recipes_run, bench.engine.batches) == ([0.5], [[0.5]])
    assert [outcome(one) for one in (gone, there)] == ["cancelled", 0.5]


@pytest.mark.anyio
async def test_lane_batch_of_cancelled_entries_is_reported_without_a_run():
    bench = Bench()
    gone = bench.entry(0.25)
    gone.future.cancel()

    job = await bench.work(gone)

    assert (bench.engine.batches, job.runs, job.outcomes) == ([], [], [])


@pytest.mark.anyio
async def test_lane_batch_whose_recipes_all_fail_is_not_run():
    bench = Bench()

    def fail() -> None:
        raise ValueError("bad")

    batch = [bench.entry(0.25, first=fail), bench.entry(0.5, first=fail)]
    job = await bench.work(*batch)

    assert [outcome(one) for one in batch] == ["ValueError", "ValueError"]
    assert (bench.engine.batches, job.runs, job.died) == ([], [], None)


@pytest.mark.anyio
async def test_lane_interrupted_during_preparation_runs_no_more_recipes():
    bench = Bench()
    batch = [bench.entry(0.25, first=bench.interrupt), bench.entry(0.5)]

    await bench.work(*batch)

    assert bench.recipes_run == [0.25]


class InterruptibleEngine(FakeEngine):
    """Calls `during_run` in every run, and raises if that interrupts the run."""

    during_run: Callable[[], object]

    def run(self, batch: Any, run: Any = None) -> Any:
        interrupts: list[bool] = []
        run.on_interrupt(lambda: interrupts.append(True))
        scores = super().run(batch)
        self.during_run()
        if interrupts:
            raise RuntimeError("terminated")
        return scores


@pytest.mark.anyio
async def test_lane_interrupted_batch_is_not_retried():
    engine = InterruptibleEngine()
    bench = Bench(engine)
    engine.during_run = bench.interrupt
    batch = [bench.entry(0.25), bench.entry(0.5)]

    job = await bench.work(*batch)

    assert engine.batches == [[0.25, 0.5]]
    assert (job.outcomes, job.runs, job.died) == ([], [], None)


@pytest.mark.anyio
async def test_lane_interrupted_picture_is_not_logged_as_an_engine_failure(caplog):
    engine = InterruptibleEngine()
    bench = Bench(engine)
    engine.during_run = bench.interrupt

    job = await bench.work(bench.entry(0.25))

    assert (job.outcomes, caplog.records) == ([], [])


@pytest.mark.anyio
async def test_lane_runs_the_next_batch_after_an_interrupted_one():
    engine = InterruptibleEngine()
    bench = Bench(engine)
    engine.during_run = bench.interrupt
    bench.begin(bench.entry(0.25))
    await bench.done()
    engine.during_run = lambda: None
    entry = bench.entry(0.5)

    await bench.work(entry)

    assert outcome(entry) == 0.5


@pytest.mark.anyio
async def test_lane_deadline_that_passes_before_a_retry_prevents_it():
    bench = Bench()

    def fail_slowly(batch: Any) -> Any:
        bench.clock.advance(2)
        if len(batch) > 1:
            raise RuntimeError("bad batch")
        return bench.engine._answer(batch)

    bench.engine.answer = fail_slowly
    late = bench.entry(0.25, deadline_s=bench.clock() + 1)
    fresh = bench.entry(0.5, deadline_s=bench.clock() + 60)

    await bench.work(late, fresh)

    assert [outcome(one) for one in (late, fresh)] == ["DeadlineExceeded", 0.5]
    assert bench.engine.batches == [[0.25, 0.5], [0.5]]


@pytest.mark.anyio
async def test_lane_times_separate_queue_preparation_and_run():
    bench = Bench()

    def answer(batch: Any) -> Any:
        bench.clock.advance(4)
        return bench.engine._answer(batch)

    bench.engine.answer = answer
    entry = bench.entry(0.5, first=lambda: bench.clock.advance(2))
    bench.clock.advance(1)

    job = await bench.work(entry)

    answered = entry.future.result()
    assert (answered.queue_s, answered.run_s, job.work_s) == (1, 4, 6)
    assert job.runs == [(1, 4)]


@pytest.mark.anyio
async def test_lane_run_starts_after_the_preparation():
    bench = Bench()
    submitted_s = bench.clock()

    job = await bench.work(bench.entry(0.5, first=lambda: bench.clock.advance(2)))

    assert job.started_s == submitted_s + 2


@pytest.mark.anyio
@pytest.mark.parametrize("all_cores", [True, False], ids=["all_cores", "one_core"])
async def test_lane_run_has_all_cores_on_request(all_cores):
    all_cores_flags = []

    class Engine(FakeEngine):
        def run(self, batch: Any, run: Any = None) -> Any:
            all_cores_flags.append(run.all_cores)
            return super().run(batch)

    bench = Bench(Engine())
    await bench.work(bench.entry(0.5), all_cores=all_cores)

    assert all_cores_flags == [all_cores]


@pytest.mark.anyio
async def test_lane_interrupted_twice_fails_its_batch_once():
    bench = Bench()
    bench.engine.hold()
    entry = bench.entry(0.5)
    work = asyncio.create_task(bench.work(entry))
    await asyncio.to_thread(bench.engine.entered.acquire)

    bench.lane.interrupt()
    bench.lane.interrupt()
    bench.engine.release()
    await work

    assert outcome(entry) == "EngineFailure"


@pytest.mark.anyio
async def test_lane_interrupted_after_a_deadline_reports_the_deadline():
    bench = Bench()
    bench.engine.hold()
    batch = [bench.entry(0.25, deadline_s=bench.clock() + 1), bench.entry(0.5)]
    work = asyncio.create_task(bench.work(*batch))
    await asyncio.to_thread(bench.engine.entered.acquire)

    bench.clock.advance(2)
    bench.lane.interrupt()
    bench.engine.release()
    await work

    assert [outcome(one) for one in batch] == ["DeadlineExceeded", "EngineFailure"]


@pytest.mark.anyio
async def test_job_of_a_lane_without_memory_is_refused_as_overloaded():
    entry = Bench().entry(0.25)
    job = new_job(entry)
    job.died = MemoryError()

    deliver(job)

    assert outcome(entry) == "Overloaded"


@pytest.mark.anyio
async def test_job_of_a_lane_that_died_fails_entries_without_an_outcome():
    bench = Bench()
    answered, open_one = bench.entry(0.25), bench.entry(0.5)
    row = RowResult([(1, 0.75), (0, 0.25)], 0, 0, 2)
    job = new_job(answered, open_one)
    job.outcomes.append((answered, row))
    job.died = SystemExit(2)

    deliver(job)

    assert [outcome(one) for one in (answered, open_one)] == [0.25, "EngineFailure"]


@pytest.mark.anyio
async def test_job_does_not_change_entries_that_already_have_an_outcome():
    bench = Bench()
    entry = bench.entry(0.25)
    entry.fail(DeadlineExceeded("late"))
    row = RowResult([(1, 0.75), (0, 0.25)], 0, 0, 1)

    job = new_job(entry)
    job.outcomes.append((entry, row))
    deliver(job)

    assert outcome(entry) == "DeadlineExceeded"


def test_lane_whose_event_loop_closes_during_a_run_ends_without_an_error():
    """pytest turns an exception on the thread into a failure."""
    loop = asyncio.new_event_loop()

    async def begin() -> Bench:
        bench = Bench()
        bench.engine.hold()
        bench.begin(bench.entry(0.5))
        await asyncio.to_thread(bench.engine.entered.acquire)
        return bench

    bench = loop.run_until_complete(begin())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    bench.engine.release()
    bench.lane.close()
    bench.lane._thread.join(30)

    assert (bench.lane._thread.is_alive(), bench.lane.busy) == (False, False)


# Claims


def test_job_can_be_claimed_once():
    job = new_job()

    assert [job.claim() for _ in range(3)] == [True, False, False]


def test_job_claimed_by_many_threads_at_once_goes_to_one():
    for _ in range(200):
        job, start = new_job(), threading.Barrier(3)
        claims: list[bool] = []

        def claim(
            job: BatchJob[QueueEntry] = job,
            claims: list[bool] = claims,
            start: threading.Barrier = start,
        ) -> None:
            start.wait()
            claims.append(job.claim())

        threads = [threading.Thread(target=claim) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(claims) == [False, False, True]


@pytest.mark.anyio
async def test_lane_queued_batch_can_be_stolen_and_the_running_one_cannot():
    bench = Bench()
    bench.engine.hold()
    first, ahead = bench.entry(0.25), bench.entry(0.5)
    bench.begin(first)
    bench.begin(ahead)
    await asyncio.to_thread(bench.engine.entered.acquire)

    stolen = [bench.lane.steal_next(), bench.lane.steal_next()]
    bench.engine.release()
    await bench.done()
    bench.lane.close()

    assert [job and job.items for job in stolen] == [[ahead], None]
    assert (outcome(first), ahead.future.done(), bench.recipes_run) == (0.25, False, [0.25])

"""A lane on a child process. The test plays the child."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from contract.errors import ImageTruncated
from contract.images import ImageFile, ImageLimits
from contract.predictions import TopK
from service.batching.lane import BatchJob, LaneCallbacks, QueueEntry, RestartReason, RowResult
from service.batching.work import Preparation
from service.errors import WorkerNotStarted
from service.models.engine import Run
from service.workers import lane as module
from service.workers import wire
from service.workers.lane import ProcessLane, is_stopped
from service.workers.wire import FrameKind, WireBatchDone
from tests.fakes import FakeClock, FakeEngine, FakeVersion
from tests.service.workers.fakeworkers import FakeLauncher, FakeWorker, row_of
from tests.waiting import until

pytestmark = pytest.mark.anyio

NEVER = math.inf
KEY = ("tiny", 1)


@pytest.fixture(autouse=True)
def no_real_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes health checks run only when a test calls them, and waits for an exit return at once."""
    monkeypatch.setattr(module, "CHECK_INTERVAL_S", 3600.0)
    monkeypatch.setattr(module, "_EXIT_S", 0.002)
    monkeypatch.setattr(module, "_POLL_S", 0.0001)


class FakeSystem:
    """What the operating system reports about a process, set by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stopped = False
        self.resident_bytes = 1000
        monkeypatch.setattr(module, "is_stopped", lambda _pid: self.stopped)
        monkeypatch.setattr(module, "resident_bytes", lambda _pid: self.resident_bytes)


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    return FakeSystem(monkeypatch)


class Bench:
    """A lane with a fake worker, and the events that the lane reports."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.launcher = FakeLauncher()
        self.ready: list[ProcessLane] = []
        self.done: list[BatchJob[QueueEntry]] = []
        self.lost: list[RestartReason] = []
        self.retiring: list[RestartReason] = []

        self.callbacks = LaneCallbacks(
            lambda _, job: self.done.append(job),
            lambda lane: self.ready.append(cast(ProcessLane, lane)),
            self._on_lost,
            lambda _, reason: self.retiring.append(reason),
        )

    def _on_lost(self, lane: Any, reason: RestartReason) -> None:
        """Treats a lost lane like `Lanes` does."""
        self.lost.append(reason)
        assert lane.take_unstarted() == []
        lane.close()

    def open(self, child: Any = None, **options: Any) -> ProcessLane:
        version_index = {("other", 3): 0, KEY: 1}
        self.lane = ProcessLane(
            child or self.launcher, version_index, self.callbacks, clock=self.clock, **options
        )
        return self.lane

    @property
    def worker(self) -> FakeWorker:
        return self.launcher.workers[-1]

    def entry(self, image: bytes, deadline_s: float = NEVER) -> QueueEntry:
        file = ImageFile(image, ImageLimits(), cast(Any, None), cast(Any, None))
        recipe = Preparation(file, cast(Any, None), deadline_s, self.clock)
        future: asyncio.Future[RowResult] = asyncio.get_running_loop().create_future()
        return QueueEntry(recipe, deadline_s, self.clock(), TopK(), future)

    async def begin(self, *entries: QueueEntry, all_cores: bool = False) -> BatchJob[QueueEntry]:
        """Gives the lane a batch and waits until the worker has received it."""
        job = BatchJob(
            FakeVersion(FakeEngine(), KEY), list(entries), Run(all_cores=all_cores), self.clock()
        )
        self.lane.work(job)
        await until(lambda: bool(self.worker.unanswered))
        return job


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Bench]:
    """A lane that is ready."""
    bench = Bench()
    lane = bench.open(**options)
    await until(lambda: lane.ready)
    try:
        yield bench
    finally:
        lane.close()
        await asyncio.gather(lane.ended, return_exceptions=True)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def outcome(entry: QueueEntry) -> float | str:
    """The entry's value, or the name of its error."""
    if not entry.future.done():
        return "pending"
    error = entry.future.exception()
    return dict(entry.future.result().ranking)[0] if error is None else type(error).__name__


# Start


@pytest.mark.parametrize("way", ["launches", "takes_over"])
async def test_process_lane_is_ready_once_its_worker_is(way):
    bench = Bench()
    lane = bench.open(await bench.launcher.make() if way == "takes_over" else None)
    before = (lane.ready, lane.busy)
    await until(lambda: lane.ready)
    await settle()

    assert (before, bench.ready, len(bench.launcher.workers)) == ((False, False), [lane], 1)
    lane.close()
    await lane.ended


async def test_process_lane_whose_worker_does_not_start_is_lost(caplog):
    bench = Bench()
    bench.launcher.failures = [WorkerNotStarted("no memory")]
    with caplog.at_level(logging.ERROR):
        lane = bench.open()
        await asyncio.gather(lane.ended, return_exceptions=True)

    assert (bench.lost, bench.ready) == ([RestartReason.NOT_STARTED], [])
    assert [one.__dict__["reason"] for one in caplog.records] == ["no memory"]


# Batches


async def test_process_lane_sends_version_index_cores_pictures_and_remaining_time():
    async with running() as bench:
        unlimited, limited = bench.entry(b"1"), bench.entry(b"22", bench.clock() + 2.5)
        await bench.begin(unlimited, limited, all_cores=True)

        assert bench.worker.unanswered == [
            wire.WireBatch(
                1,
                True,
                [wire.WirePicture(b"1", NEVER, TopK()), wire.WirePicture(b"22", 2.5, TopK())],
            )
        ]


async def test_process_lane_answers_are_delivered_in_order_with_their_times():
    async with running() as bench:
        entries = [bench.entry(b"1"), bench.entry(b"333")]
        bench.clock.advance(2)
        job = await bench.begin(*entries)
        in_progress = list(bench.lane.jobs)

        bench.clock.advance(60)
        bench.worker.answer()
        await until(lambda: bool(bench.done))

        assert [outcome(one) for one in entries] == [1.0, 3.0]
        assert (in_progress, bench.done, list(bench.lane.jobs)) == ([job], [job], [])
        assert (job.runs, job.work_s) == ([(2, 0.5)], 0.75)
        for one in entries:
            row, recipe = one.future.result(), cast(Preparation, one.item)
            assert (row.queue_s, row.run_s, row.batch_size) == (2.125, 0.5, 2)
            assert (recipe.decode_s, recipe.preprocess_s) == (0.25, 0.375)


async def test_process_lane_error_of_a_picture_is_raised_unchanged():
    async with running() as bench:
        bad, good = bench.entry(b"1"), bench.entry(b"22")
        await bench.begin(bad, good)
        bench.worker.answer(ImageTruncated("row 7 is missing"))
        await until(lambda: bool(bench.done))

        assert outcome(good) == 2.0
        with pytest.raises(ImageTruncated, match="row 7 is missing"):
            bad.future.result()


async def test_process_lane_continues_with_the_next_batch():
    async with running() as bench:
        for image in (b"1", b"22", b"333"):
            entry = bench.entry(image)
            await bench.begin(entry)
            bench.worker.answer()
            await until(entry.future.done)
            assert outcome(entry) == len(image)

        assert bench.worker.received == [[b"1"], [b"22"], [b"333"]]


async def test_process_lane_answer_for_a_client_that_left_is_dropped():
    async with running() as bench:
        cancelled, kept = bench.entry(b"1"), bench.entry(b"22")
        await bench.begin(cancelled, kept)
        cancelled.future.cancel()
        bench.worker.answer()
        await until(lambda: bool(bench.done))

        assert (outcome(kept), bench.lost) == (2.0, [])


# Workers that exit or break the protocol


async def test_process_lane_worker_that_exits_fails_its_pictures(caplog):
    async with running() as bench:
        entries = [bench.entry(b"1"), bench.entry(b"22", bench.clock() + 1), bench.entry(b"333")]
        entries[2].future.cancel()
        await bench.begin(*entries)
        bench.clock.advance(2)

        with caplog.at_level(logging.INFO):
            bench.worker.process.exit(-11)
            await bench.lane.ended

        assert [outcome(one) for one in entries[:2]] == ["WorkerLost", "DeadlineExceeded"]
        said = str(entries[0].future.exception())
        assert said == "the model stopped before it answered this picture; try again"
        assert (bench.lost, bench.done) == ([RestartReason.EXITED], [])
        assert (bench.lane.ready, bench.lane.dead, list(bench.lane.jobs)) == (False, True, [])
        lost, ended = (one.__dict__ for one in caplog.records if one.name == module.__name__)
        assert (lost["pid"], lost["reason"], lost["pictures_lost"]) == (1000, "exited", 2)
        assert (ended["pid"], ended["signal"]) == (1000, "SIGSEGV")


async def test_process_lane_answer_sent_before_the_exit_counts():
    async with running() as bench:
        entry = bench.entry(b"1")
        await bench.begin(entry)
        bench.worker.answer()
        await settle()
        bench.worker.process.exit(1)
        await bench.lane.ended

        assert (outcome(entry), bench.lost) == (1.0, [RestartReason.EXITED])


async def test_process_lane_worker_that_exits_while_idle_is_lost():
    async with running() as bench:
        bench.worker.process.exit(0)
        await bench.lane.ended

        assert bench.lost == [RestartReason.EXITED]


def done_frame(n_pictures: int) -> list[bytes]:
    return wire.pack_done(WireBatchDone([row_of(1.0)] * n_pictures, [], 0.0))


BREACHES = {
    "noise": [b"\xff" * 20],
    "wrong_way": wire.pack(FrameKind.WORK),
    "cut": wire.pack(FrameKind.DONE, b"x"),
    "too_few": done_frame(1),
    "too_many": done_frame(3),
    "ready_again": wire.pack_json(FrameKind.READY, {"versions": []}),
}


@pytest.mark.parametrize("frame", BREACHES.values(), ids=BREACHES.keys())
async def test_process_lane_worker_that_breaks_the_protocol_is_killed(frame: Iterable[bytes]):
    async with running() as bench:
        entries = [bench.entry(b"1"), bench.entry(b"22")]
        await bench.begin(*entries)
        bench.worker.send(frame)
        await bench.lane.ended

        assert [outcome(one) for one in entries] == ["WorkerLost"] * 2
        assert (bench.lost, bench.worker.process.status) == ([RestartReason.EXITED], -9)


async def test_process_lane_answer_without_a_batch_breaks_the_protocol():
    async with running() as bench:
        bench.worker.send(done_frame(0))
        await bench.lane.ended

        assert (bench.lost, bench.worker.process.status) == ([RestartReason.EXITED], -9)


async def test_process_lane_frames_after_a_breach_are_ignored():
    async with running() as bench:
        entries = [bench.entry(b"1"), bench.entry(b"22")]
        await bench.begin(*entries)
        bench.worker.send([*done_frame(1), *done_frame(2)])
        await bench.lane.ended

        assert [outcome(one) for one in entries] == ["WorkerLost"] * 2


# Health


async def test_process_lane_worker_stopped_at_two_checks_is_killed(system):
    async with running() as bench:
        entry = bench.entry(b"1")
        await bench.begin(entry)
        system.stopped = True
        bench.lane._check()
        before = (bench.lane.ready, outcome(entry))
        bench.lane._check()
        await bench.lane.ended

        assert (before, outcome(entry)) == ((True, "pending"), "WorkerLost")
        assert (bench.lost, bench.worker.process.status) == ([RestartReason.STOPPED], -9)


async def test_process_lane_worker_that_continues_after_one_check_is_kept(system):
    """After Ctrl-Z and fg the front may be the first to run again."""
    async with running() as bench:
        for stopped in (True, False, True, False):
            system.stopped = stopped
            bench.lane._check()

        assert (bench.lost, bench.lane.ready) == ([], True)


@pytest.mark.usefixtures("system")
@pytest.mark.parametrize(
    ("limit", "retiring"),
    [(None, []), (1000, []), (999, [RestartReason.MEMORY] * 2)],
    ids=["unlimited", "at_limit", "above"],
)
async def test_process_lane_above_its_memory_limit_retires_at_every_check(limit, retiring):
    async with running(max_memory_bytes=limit) as bench:
        for _ in range(2):
            bench.lane._check()

        assert (bench.retiring, bench.lane.ready, bench.lane.dead) == (retiring, True, False)


@pytest.mark.usefixtures("system")
async def test_process_lane_worker_that_got_sigterm_retires_at_every_check():
    async with running() as bench:
        entry = bench.entry(b"1")
        await bench.begin(entry)
        bench.worker.send(wire.pack(FrameKind.RETIRE))
        await until(lambda: bool(bench.retiring))
        bench.lane._check()
        bench.worker.answer()
        await until(entry.future.done)

        assert (bench.retiring, outcome(entry)) == ([RestartReason.TERMINATED] * 2, 1.0)
        assert (bench.lost, bench.lane.ready) == ([], True)


async def test_process_lane_interrupted_kills_its_worker():
    async with running() as bench:
        late, unlimited = bench.entry(b"1", bench.clock() + 1), bench.entry(b"22")
        await bench.begin(late, unlimited)
        bench.clock.advance(2)
        bench.lane.interrupt()
        await bench.lane.ended

        assert [outcome(one) for one in (late, unlimited)] == ["DeadlineExceeded", "WorkerLost"]
        assert (bench.lost, bench.worker.process.status) == ([RestartReason.OVERDUE], -9)


async def test_process_lane_interrupted_while_idle_does_nothing():
    async with running() as bench:
        bench.lane.interrupt()
        await settle()

        assert (bench.lost, bench.worker.process.status, bench.lane.ready) == ([], None, True)


async def test_process_lane_marked_dead_still_fails_its_pictures():
    """`Lanes.stop` marks lanes as dead before it interrupts them."""
    async with running() as bench:
        entry = bench.entry(b"1")
        await bench.begin(entry)
        bench.lane.dead = True
        bench.lane.interrupt()

        assert outcome(entry) == "WorkerLost"


# Close


async def test_process_lane_closed_lets_its_worker_exit():
    async with running() as bench:
        bench.lane.close()
        await bench.lane.ended

        assert (bench.worker.closed, bench.worker.process.status, bench.lost) == (True, 0, [])


async def test_process_lane_closed_during_a_batch_kills_its_worker():
    async with running() as bench:
        await bench.begin(bench.entry(b"1"))
        bench.lane.close()
        await bench.lane.ended

        assert (bench.worker.process.status, bench.lost) == (-9, [])


async def test_process_lane_can_be_closed_twice():
    async with running() as bench:
        bench.lane.close()
        bench.lane.close()
        await bench.lane.ended

        assert bench.worker.process.status == 0


async def test_process_lane_worker_that_does_not_exit_is_killed():
    async with running() as bench:
        bench.worker.process.exits = False
        bench.lane.close()
        await bench.lane.ended

        assert (bench.worker.closed, bench.worker.process.status) == (True, -9)


async def test_process_lane_closed_before_its_worker_is_ready_leaves_no_process():
    bench = Bench()
    bench.launcher.gate.clear()
    lane = bench.open()
    await settle()
    lane.close()
    await asyncio.gather(lane.ended, return_exceptions=True)
    bench.launcher.gate.set()
    await settle()

    assert (bench.launcher.workers, bench.ready, bench.lost) == ([], [], [])


@pytest.mark.parametrize("turns", range(12))
@pytest.mark.parametrize("way", ["launches", "takes_over"])
async def test_process_lane_closed_at_any_moment_of_its_start_leaves_no_process(way, turns):
    bench = Bench()
    lane = bench.open(await bench.launcher.make() if way == "takes_over" else None)
    for _ in range(turns):
        await asyncio.sleep(0)
    lane.close()
    await asyncio.gather(lane.ended, return_exceptions=True)

    assert None not in [worker.process.status for worker in bench.launcher.workers]
    await until(lambda: all(worker.closed for worker in bench.launcher.workers))


# Process state from /proc


@pytest.mark.parametrize(
    ("stat", "stopped"),
    [
        ("7 (python) S 1 7", False),
        ("7 (python) T 1 7", True),
        ("7 (a) T (b) R 1 7", False),
        ("", False),
    ],
    ids=["sleeps", "stopped", "odd_name", "empty"],
)
def test_is_stopped_reads_the_state_of_the_process(tmp_path, stat, stopped):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(stat, encoding="ascii")

    assert is_stopped(7, tmp_path) is stopped
    assert not is_stopped(8, tmp_path)
    assert not is_stopped(os.getpid())

"""A lane: one thread that prepares and runs one batch after the other and reports each.

A batch is answered by one message to the event loop. On the thread nothing of the loop is touched;
it only looks whether an entry's waiter is still there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.errors import DeadlineExceeded, EngineFailure
from service.models.engine import Batch, Engine, Run
from service.system.threads import DaemonThread

log = logging.getLogger(__name__)

Recipe = Callable[[], Batch]
"""Makes a prepared picture, without the batch axis."""


@dataclass(frozen=True, slots=True)
class BatchedRow:
    """One item's answer.

    Attributes:
        probabilities: float32, shape (C,).
        queue_s: seconds from submit to the start of the work on its batch.
        run_s: seconds of its run.
        batch_size: items in its run.
    """

    probabilities: NDArray[np.float32]
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(slots=True, eq=False)
class Entry:
    """One item in the queue or in a batch.

    Attributes:
        item: a prepared picture or the recipe for it.
        deadline_s: after it the item is not worth running.
        submitted_s: when it came.
        future: its answer; done as soon as nobody waits for it any more.
    """

    item: Batch | Recipe
    deadline_s: float
    submitted_s: float
    future: asyncio.Future[BatchedRow]

    def fail(self, error: Exception) -> None:
        """Answers with an error, unless somebody did already; on the event loop only."""
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True, eq=False)
class Report:
    """What became of a batch.

    Attributes:
        batch: all of it.
        run: how it was run.
        outcomes: each entry's answer or error; entries that nobody waited for have none.
        runs: size and seconds of every run that succeeded.
        work_s: seconds of the whole work, preparing included.
        died: what ended the lane, if anything did.
    """

    batch: list[Entry]
    run: Run
    outcomes: list[tuple[Entry, BatchedRow | Exception]] = field(default_factory=list)
    runs: list[tuple[int, float]] = field(default_factory=list)
    work_s: float = 0.0
    died: BaseException | None = None

    def deliver(self) -> None:
        """Answers every entry that still waits; on the event loop only."""
        for entry, outcome in self.outcomes:
            if entry.future.done():
                continue
            if isinstance(outcome, BatchedRow):
                entry.future.set_result(outcome)
            else:
                entry.future.set_exception(outcome)
        if self.died is not None:
            for entry in self.batch:
                entry.fail(EngineFailure("the lane stopped during the run"))


@dataclass(slots=True, eq=False)
class Job:
    """A batch that a lane was given.

    Attributes:
        entries: the batch.
        run: how it is run, and how that is ended early.
    """

    entries: list[Entry]
    run: Run
    _unclaimed: deque[None] = field(default_factory=lambda: deque((None,)))

    def claim(self) -> bool:
        """Returns True once: to the lane that begins it, or to whoever takes it back before."""
        try:
            self._unclaimed.pop()  # one of two threads gets it, whatever their timing
        except IndexError:
            return False
        return True


class Lane:
    """Works on one batch at a time, on a thread of its own.

    Attributes:
        jobs: what it has in hand, and behind it what it will go on with; empty while it is idle.
        since_s: when its present run began, or else its preparing.
        dead: it takes no more work.
    """

    def __init__(
        self,
        number: int,
        engine: Callable[[], Engine],
        clock: Callable[[], float],
        on_report: Callable[[Lane, Report], None],
    ) -> None:
        """Starts the thread, from the running event loop.

        Args:
            number: names the thread.
            engine: returns what runs batches.
            clock: monotonic seconds.
            on_report: called on the event loop for each batch, after its entries were answered.
        """
        self.jobs: deque[Job] = deque()
        self.since_s = 0.0
        self.dead = False
        self._engine = engine
        self._clock = clock
        self._on_report = on_report
        self._loop = asyncio.get_running_loop()
        self.thread = DaemonThread(f"lane-{number}")

    @property
    def busy(self) -> bool:
        """True while its thread is at work, whoever may have stopped waiting for it."""
        return self.thread.busy

    @property
    def interrupted(self) -> bool:
        """True once what it has in hand was told to end."""
        return bool(self.jobs) and self.jobs[0].run.interrupted

    def work(self, batch: list[Entry], *, wide: bool = False) -> None:
        """Begins to work on a batch, or will as soon as it is done with what it has in hand.

        Args:
            batch: one entry or more.
            wide: the run may have all cores.
        """
        if not self.jobs:
            self.since_s = self._clock()
        job = Job(batch, Run(wide=wide))
        self.jobs.append(job)
        self.thread.post(partial(self._work, job))

    def interrupt(self, error: Exception) -> None:
        """Answers what it has in hand with an error and asks the run to end."""
        for job in list(self.jobs)[:1]:
            for entry in job.entries:
                entry.fail(error)
            job.run.interrupt()

    def take_back(self) -> list[Entry]:
        """Returns what it has not begun and now never will; what it has in hand is forgotten."""
        ahead = [job for job in self.jobs if job.claim()]
        self.jobs.clear()
        return [entry for job in ahead for entry in job.entries]

    def pass_on(self) -> list[Entry]:
        """Returns what it has ahead, which it will not begin; nothing if it just has."""
        if len(self.jobs) < 2 or not self.jobs[-1].claim():
            return []
        return self.jobs.pop().entries

    def close(self) -> None:
        """Lets the thread end after what it has in hand; returns at once."""
        self.thread.close()

    # On the thread

    def _work(self, job: Job) -> None:
        if self.dead or not job.claim():
            return
        report = Report(job.entries, job.run)
        started_s = self.since_s = self._clock()
        try:
            prepared = list(self._prepared(report))
            if prepared:
                self._answer(prepared, report, started_s)
        except BaseException as error:  # noqa: BLE001 - must not reach the event loop as itself
            report.died = error
            self.dead = True
        report.work_s = self._clock() - started_s
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._report, report)

    def _report(self, report: Report) -> None:
        if self.jobs and self.jobs[0].run is report.run:
            self.jobs.popleft()
        report.deliver()
        self._on_report(self, report)

    def _prepared(self, report: Report) -> list[tuple[Entry, Batch]]:
        rows = []
        for entry in report.batch:
            if not self._is_live(entry, report):
                continue
            if not callable(entry.item):
                rows.append((entry, entry.item))
                continue
            try:
                rows.append((entry, entry.item()))
            except Exception as error:  # noqa: BLE001 - is this item's answer, whatever it is
                report.outcomes.append((entry, _transportable(error)))
        return rows

    def _is_live(self, entry: Entry, report: Report) -> bool:
        if entry.future.done() or report.run.interrupted:
            return False
        if self._clock() >= entry.deadline_s:
            expired = DeadlineExceeded("the deadline passed before the picture was run")
            report.outcomes.append((entry, expired))
            return False
        return True

    def _answer(
        self, prepared: list[tuple[Entry, Batch]], report: Report, started_s: float
    ) -> None:
        try:
            self._run_once(prepared, report, started_s)
        except Exception as error:
            if report.run.interrupted:
                return  # the batch has been answered by whoever interrupted it
            if len(prepared) > 1:
                log.warning("a run of %d pictures failed; retrying one by one", len(prepared))
                for one in prepared:
                    if self._is_live(one[0], report):
                        self._answer([one], report, started_s)
                return
            log.exception("the engine failed on one picture")
            failure = EngineFailure("the engine failed on this picture")
            failure.__cause__ = error
            report.outcomes.append((prepared[0][0], failure))

    def _run_once(
        self, prepared: list[tuple[Entry, Batch]], report: Report, started_s: float
    ) -> None:
        size = len(prepared)
        # One picture needs no copy to become a batch.
        batch = prepared[0][1][None] if size == 1 else np.stack([row for _, row in prepared])
        began_s = self.since_s = self._clock()
        scores = self._engine().run(batch, report.run)
        run_s = self._clock() - began_s
        if scores.ndim != 2 or len(scores) != size:
            raise EngineFailure(f"{size} pictures gave scores of shape {scores.shape}")
        report.runs.append((size, run_s))
        finite = np.atleast_1d(np.isfinite(scores).all(axis=1))
        for at, (entry, _) in enumerate(prepared):
            outcome: BatchedRow | Exception
            if finite[at]:
                outcome = BatchedRow(scores[at], started_s - entry.submitted_s, run_s, size)
            else:
                outcome = EngineFailure("the network gave a non-finite row for this picture")
            report.outcomes.append((entry, outcome))


def _transportable(error: Exception) -> Exception:
    # A future does not take StopIteration.
    return RuntimeError("StopIteration") if isinstance(error, StopIteration) else error

"""A lane: one thread that prepares and runs one batch after the other and reports each.

A batch is answered by one message to the event loop. On the thread nothing of the loop is touched;
it only looks whether an entry's waiter is still there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.engine import Batch, Engine, Run
from service.errors import DeadlineExceeded, EngineFailure
from service.threads import DaemonThread

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
        outcomes: each entry's answer or error; entries that nobody waited for have none.
        runs: size and seconds of every run that succeeded.
        work_s: seconds of the whole work, preparing included.
        died: what ended the lane, if anything did.
    """

    batch: list[Entry]
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


class Lane:
    """Works on one batch at a time, on a thread of its own.

    Attributes:
        batch: what it has in hand; empty while it is idle.
        since_s: when its present run began, or else its preparing.
        dead: it takes no more work.
        interrupted: its run was told to end; nothing more of the batch is worth doing.
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
        self.batch: list[Entry] = []
        self.since_s = 0.0
        self.dead = False
        self.interrupted = False
        self._engine = engine
        self._clock = clock
        self._on_report = on_report
        self._loop = asyncio.get_running_loop()
        self._run = Run()
        self.thread = DaemonThread(f"lane-{number}")

    @property
    def busy(self) -> bool:
        """True while its thread is at work, whoever may have stopped waiting for it."""
        return self.thread.busy

    def work(self, batch: list[Entry], *, wide: bool = False) -> None:
        """Begins to work on a batch; it must be idle.

        Args:
            batch: one entry or more.
            wide: the run may have all cores.
        """
        self.batch = batch
        self.since_s = self._clock()
        self.interrupted = False
        self._run = Run(wide=wide)
        self.thread.post(partial(self._work, batch, self._run))

    def fail_batch(self, error: Exception) -> None:
        """Answers everything in hand with an error; the work itself goes on."""
        for entry in self.batch:
            entry.fail(error)

    def interrupt(self) -> None:
        """Asks the run in hand to end."""
        self.interrupted = True
        self._run.interrupt()

    def close(self) -> None:
        """Lets the thread end after what it has in hand; returns at once."""
        self.thread.close()

    # On the thread

    def _work(self, batch: list[Entry], run: Run) -> None:
        report = Report(batch)
        started_s = self._clock()
        try:
            prepared = list(self._prepared(report))
            if prepared:
                self._answer(prepared, run, report, started_s)
        except BaseException as error:  # noqa: BLE001 - must not reach the event loop as itself
            report.died = error
        report.work_s = self._clock() - started_s
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._report, report)

    def _report(self, report: Report) -> None:
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
        if entry.future.done() or self.interrupted:
            return False
        if self._clock() >= entry.deadline_s:
            expired = DeadlineExceeded("the deadline passed before the picture was run")
            report.outcomes.append((entry, expired))
            return False
        return True

    def _answer(
        self, prepared: list[tuple[Entry, Batch]], run: Run, report: Report, started_s: float
    ) -> None:
        try:
            self._run_once(prepared, run, report, started_s)
        except Exception as error:
            if self.interrupted:
                return  # the batch has been answered by whoever interrupted it
            if len(prepared) > 1:
                log.warning("a run of %d pictures failed; retrying one by one", len(prepared))
                for one in prepared:
                    if self._is_live(one[0], report):
                        self._answer([one], run, report, started_s)
                return
            log.exception("the engine failed on one picture")
            failure = EngineFailure("the engine failed on this picture")
            failure.__cause__ = error
            report.outcomes.append((prepared[0][0], failure))

    def _run_once(
        self, prepared: list[tuple[Entry, Batch]], run: Run, report: Report, started_s: float
    ) -> None:
        size = len(prepared)
        # One picture needs no copy to become a batch.
        batch = prepared[0][1][None] if size == 1 else np.stack([row for _, row in prepared])
        began_s = self.since_s = self._clock()
        scores = self._engine().run(batch, run)
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

"""The seam between the batcher and its lanes.

A lane runs one batch at a time. It is a thread of this process (`service.batching.thread_lane`) or a
child process (`service.workers.lane`). The batcher does not know which.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from contract.manifest import Manifest
from contract.predictions import Ranking, TopK
from service.errors import DeadlineExceeded, EngineFailure, Overloaded
from service.models.engine import Batch, Engine, Run

CHECK_INTERVAL_S: Final = 0.25  # between health checks of lanes, and of a lane's child process

# Prepares one picture: returns it without the batch axis.
Recipe = Callable[[], Batch]


class RunnableVersion(Protocol):
    """A version as the batcher sees it; `LoadedVersion` is one."""

    @property
    def key(self) -> tuple[str, int]: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def max_batch_size(self) -> int: ...
    @property
    def load_s(self) -> float: ...


@dataclass(frozen=True, slots=True)
class RowResult:
    """One picture's answer."""

    ranking: Ranking
    queue_s: float  # from submit to the start of work on its batch
    run_s: float
    batch_size: int  # pictures in its run
    rank_s: float = 0.0


@dataclass(slots=True, eq=False)
class BatchItem:
    """One picture of a batch. Times are monotonic seconds."""

    item: Batch | Recipe  # prepared, or how to prepare it
    deadline_s: float  # after this it is not worth running
    submitted_s: float
    wanted: TopK

    @property
    def pending(self) -> bool:
        return True  # a child process cannot see whether the client is still there


@dataclass(slots=True, eq=False)
class QueueEntry(BatchItem):
    """A picture in the queue or in a batch, with the future that its client awaits."""

    future: asyncio.Future[RowResult]
    peer: str = ""  # the client, for fairness between clients
    order: tuple[float, int] = (0.0, 0)  # its turn, and its number among those of one turn

    @property
    def pending(self) -> bool:
        # Safe to read on a lane's thread. False once it is answered or its client is gone.
        return not self.future.done()

    def fail(self, error: Exception) -> None:
        """Answers with an error if there is no answer yet; on the event loop only."""
        if not self.future.done():
            self.future.set_exception(error)

    def fail_late(self, now_s: float, error: Exception) -> None:
        """Answers with DeadlineExceeded if the deadline has passed, else with `error`."""
        if now_s >= self.deadline_s:
            self.expire("answered")
        else:
            self.fail(error)

    def expire(self, before: str) -> None:
        """Answers with DeadlineExceeded; `before` is what has not been done: run, answered."""
        self.fail(
            DeadlineExceeded(f"the request's deadline passed before the picture was {before}")
        )


Outcome = RowResult | Exception
AnyItem = TypeVar("AnyItem", bound=BatchItem)


@dataclass(slots=True, eq=False)
class BatchJob(Generic[AnyItem]):
    """A batch given to a lane, and its results."""

    version: RunnableVersion
    items: list[AnyItem]
    run: Run
    started_s: float  # of the current run; before it, of the preparation
    large: bool = False  # a large picture; only some of the lanes may run these
    due_s: float = math.inf  # a lane still at work on it after this hangs

    # Filled in by the lane. Items that nobody waited for have no outcome.
    outcomes: list[tuple[AnyItem, Outcome]] = field(default_factory=list)
    runs: list[tuple[int, float]] = field(default_factory=list)  # size, seconds; successful runs
    work_s: float = 0.0  # preparation and runs
    died: BaseException | None = None  # what ended the lane, if anything did

    _unclaimed: deque[None] = field(default_factory=lambda: deque((None,)))

    def claim(self) -> bool:
        """Returns True once: to the lane that starts it, or to the caller that takes it back first."""
        try:
            self._unclaimed.pop()  # atomic: one of two threads gets it
        except IndexError:
            return False
        return True


def deliver(job: BatchJob[QueueEntry]) -> None:
    """Answers every entry that is still pending; on the event loop only."""
    for entry, outcome in job.outcomes:
        if entry.future.done():
            continue
        if isinstance(outcome, RowResult):
            entry.future.set_result(outcome)
        else:
            entry.future.set_exception(outcome)

    if job.died is not None:
        stopped: Exception
        if isinstance(job.died, MemoryError):
            stopped = Overloaded("not enough memory for this picture now", reason="memory")
        else:
            stopped = EngineFailure("the model stopped before it answered this picture; try again")
        for entry in job.items:
            entry.fail(stopped)


class Lane(Protocol):
    """Runs one batch at a time; its methods are called on the event loop only.

    Attributes:
        jobs: the batch it is running, then the batches queued behind it; empty while it is idle.
        depth: batches it may hold at the same time.
        ready: it can be given work.
        dead: it takes no more work and has to be replaced.
        busy: it is inside the runtime of this process, even if its batch has been given up.
    """

    jobs: deque[BatchJob[QueueEntry]]
    depth: int
    ready: bool
    dead: bool

    @property
    def busy(self) -> bool: ...

    def work(self, job: BatchJob[QueueEntry]) -> None:
        """Starts a batch, or queues it behind the running one."""
        ...

    def interrupt(self) -> None:
        """Answers the running batch with errors and ends its run."""
        ...

    def take_unstarted(self) -> list[BatchJob[QueueEntry]]:
        """Empties `jobs` and returns those that have not started and now never will."""
        ...

    def steal_next(self) -> BatchJob[QueueEntry] | None:
        """Returns the last queued batch for another lane to run; None if it has just started."""
        ...

    def close(self) -> None:
        """Lets the lane end after its running batch; returns at once."""
        ...


class RestartReason(enum.StrEnum):
    """Why a lane is replaced; the values of a metric's label."""

    DIED = "died"  # a thread: the run raised SystemExit or the like
    STUCK = "stuck"  # a thread: abandoned in a run that cannot be interrupted
    NOT_STARTED = "not_started"
    EXITED = "exited"
    STOPPED = "stopped"
    OVERDUE = "overdue"
    MEMORY = "memory"
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True)
class LaneCallbacks:
    """Callbacks for a lane's events, always on the event loop.

    Attributes:
        on_done: a batch is done and its entries have been answered.
        on_ready: the lane can be given work.
        on_lost: the lane could not be started, or it died outside of a batch.
        on_retiring: the lane works, but wants to be replaced once a successor is ready.
    """

    on_done: Callable[[Lane, BatchJob[QueueEntry]], None]
    on_ready: Callable[[Lane], None]
    on_lost: Callable[[Lane, RestartReason], None]
    on_retiring: Callable[[Lane, RestartReason], None]


class LaneFactory(Protocol):
    """Creates lanes of one kind for a set of versions.

    Attributes:
        restarts: a lost lane can be replaced any number of times. Otherwise a lane that is stuck for
            good needs a new process.
        pids: the ids of the lanes' processes; empty if they are threads.
    """

    restarts: bool

    @property
    def pids(self) -> Collection[int]: ...

    def open(self, callbacks: LaneCallbacks) -> Lane:
        """Starts a lane from the running event loop; it may become ready later."""
        ...

    async def wait_closed(self) -> None:
        """Returns when every closed lane has ended."""
        ...

"""What the batcher and its lanes pass to each other, and what a lane is.

A lane works on one batch after the other. It is a thread of this process
(`service.batching.thread_lane`) or a child process (`service.workers.lane`); the batcher does not know
which.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from contract.manifest import Manifest
from service.errors import DeadlineExceeded, EngineFailure
from service.models.engine import Batch, Engine, Run

Recipe = Callable[[], Batch]
"""Makes a prepared picture, without the batch axis."""


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
    """One picture's answer.

    Attributes:
        probabilities: float32, shape (C,).
        queue_s: seconds from submit to the start of the work on its batch.
        run_s: seconds of its run.
        batch_size: pictures in its run.
    """

    probabilities: NDArray[np.float32]
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(slots=True, eq=False)
class BatchItem:
    """One picture of a batch.

    Attributes:
        item: the prepared picture, or the recipe for it.
        deadline_s: after it the picture is not worth running.
        submitted_s: when it came.
    """

    item: Batch | Recipe
    deadline_s: float
    submitted_s: float

    @property
    def wanted(self) -> bool:
        """True while somebody waits for the answer."""
        return True


@dataclass(slots=True, eq=False)
class QueueEntry(BatchItem):
    """A picture in the queue or in a batch, and the future of its answer.

    Attributes:
        future: done as soon as nobody waits for it any more.
    """

    future: asyncio.Future[RowResult]

    @property
    def wanted(self) -> bool:
        return not self.future.done()

    def fail(self, error: Exception) -> None:
        """Answers with an error, unless somebody did already; on the event loop only."""
        if not self.future.done():
            self.future.set_exception(error)

    def fail_late(self, now_s: float, error: Exception) -> None:
        """Answers with an error, or that the deadline passed if it has."""
        late = now_s >= self.deadline_s
        self.fail(DeadlineExceeded("the picture was not answered in time") if late else error)


Outcome = RowResult | Exception
AnyItem = TypeVar("AnyItem", bound=BatchItem)


@dataclass(slots=True, eq=False)
class BatchJob(Generic[AnyItem]):
    """A batch that a lane was given, and what became of it.

    Attributes:
        version: what it is run with.
        items: the batch.
        run: how it is run, and how that is ended early.
        since_s: when its present run began, or else the preparing.
        large: the picture is dear to prepare; some of the lanes only work on such.
        due_s: when it shows that its lane hangs.
        outcomes: each picture's answer or error; those that nobody waited for have none.
        runs: size and seconds of every run that succeeded.
        work_s: seconds of the whole work, preparing included.
        died: what ended the lane, if anything did.
    """

    version: RunnableVersion
    items: list[AnyItem]
    run: Run
    since_s: float
    large: bool = False
    due_s: float = math.inf
    outcomes: list[tuple[AnyItem, Outcome]] = field(default_factory=list)
    runs: list[tuple[int, float]] = field(default_factory=list)
    work_s: float = 0.0
    died: BaseException | None = None
    _unclaimed: deque[None] = field(default_factory=lambda: deque((None,)))

    def claim(self) -> bool:
        """Returns True once: to the lane that begins it, or to whoever takes it back before."""
        try:
            self._unclaimed.pop()  # one of two threads gets it, whatever their timing
        except IndexError:
            return False
        return True


def deliver(job: BatchJob[QueueEntry]) -> None:
    """Answers every entry that still waits; on the event loop only."""
    for entry, outcome in job.outcomes:
        if entry.future.done():
            continue
        if isinstance(outcome, RowResult):
            entry.future.set_result(outcome)
        else:
            entry.future.set_exception(outcome)
    if job.died is not None:
        for entry in job.items:
            entry.fail(EngineFailure("the lane stopped during the run"))


class Lane(Protocol):
    """Works on one batch at a time; used on the event loop only.

    Attributes:
        jobs: what it has in hand, and behind it what it will go on with; empty while it is idle.
        depth: jobs it may have at the same time.
        ready: it can be given work.
        dead: it takes no more work, and has to be replaced.
        busy: it is inside the runtime of this process, whoever may have stopped waiting for it.
    """

    jobs: deque[BatchJob[QueueEntry]]
    depth: int
    ready: bool
    dead: bool

    @property
    def busy(self) -> bool: ...

    def work(self, job: BatchJob[QueueEntry]) -> None:
        """Begins to work on a batch, or will as soon as it is done with what it has in hand."""
        ...

    def interrupt(self) -> None:
        """Answers what it has in hand with errors and ends the work on it."""
        ...

    def take_back(self) -> list[BatchJob[QueueEntry]]:
        """Returns what it has not begun and now never will; what it has in hand is forgotten."""
        ...

    def pass_on(self) -> BatchJob[QueueEntry] | None:
        """Returns what it has ahead, which it will not begin; None if it just has."""
        ...

    def close(self) -> None:
        """Lets it end after what it has in hand; returns at once."""
        ...


class RestartReason(enum.StrEnum):
    """Why a lane is replaced; the values of a metric's label."""

    DIED = "died"  # a thread: what it ran raised what no run may raise
    STUCK = "stuck"  # a thread that is abandoned in a run that cannot be interrupted
    NOT_STARTED = "not_started"
    EXITED = "exited"
    STOPPED = "stopped"
    OVERDUE = "overdue"
    MEMORY = "memory"
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True)
class LaneCallbacks:
    """What a lane calls, always on the event loop.

    Attributes:
        on_done: a job is done, and its entries have been answered.
        on_ready: it can be given work from now on.
        on_lost: it died outside of a job, or could not be started: why.
        on_worn: it works, but should be replaced when another is ready: why.
    """

    on_done: Callable[[Lane, BatchJob[QueueEntry]], None]
    on_ready: Callable[[Lane], None]
    on_lost: Callable[[Lane, RestartReason], None]
    on_worn: Callable[[Lane, RestartReason], None]


class LaneFactory(Protocol):
    """Makes the lanes of one kind, for one set of versions."""

    restarts: bool
    """A lane that is lost can be made anew for ever; otherwise only a new process helps."""

    def open(self, callbacks: LaneCallbacks) -> Lane:
        """Starts a lane, from the running event loop; it may become ready later."""
        ...

    async def closed(self) -> None:
        """Returns when every lane that was closed has ended."""
        ...

"""The front's queue of pictures and its choice of a worker for each.

The rules, each with a test in tests/service/workers/test_pool.py:

- a picture goes to the live worker that owes the fewest; each has a bounded number, the others wait
  here, first in, first out; who leaves or expires while waiting costs nothing;
- a worker that ends answers for what it had with `WorkerLost`, or `DeadlineExceeded` where that
  passed; nobody else notices;
- it is replaced, at once the first time, more and more slowly if those that follow end before they
  have answered anything;
- a worker that can wait is replaced by starting the new one first, one at a time;
- while no worker is there, pictures wait as long as a new one can be expected soon, and are refused
  afterwards.

Everything happens on the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from service.errors import DeadlineExceeded, Draining, ModelNotReady, ServiceError
from service.serving.answering import Answered
from service.workers.launch import Launched, Launcher
from service.workers.member import Hooks, Member, Order
from service.workers.seat import Rules, Seat
from service.workers.vitals import Reason, Tolerance
from service.workers.wire import Worked

LOOK_S: Final = 0.1
"""Seconds between looks at the workers."""

_HELD_UP: Final = 3  # so many times this late, the front has not been looking
_CLOCKS_DIFFER_S: Final = 0.05  # a timer of the event loop may go off this much early
_COST_WEIGHT: Final = 0.1  # of the newest picture in the running mean of what one costs


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """The bounds of a pool.

    Attributes:
        in_flight: pictures that one worker has at most.
        lanes: runs at the same time in one worker.
        tolerance: what a worker may do before it is replaced.
    """

    in_flight: int = 10
    lanes: int = 1
    tolerance: Tolerance = field(default_factory=Tolerance)


@dataclass(frozen=True, slots=True)
class PoolHooks:
    """Whom the pool tells.

    Attributes:
        on_worked: a worker's lanes have done something.
        on_replaced: a worker has to be replaced, and why.
    """

    on_worked: Callable[[Worked], None] = lambda _: None
    on_replaced: Callable[[Reason], None] = lambda _: None


class WorkerPool:
    """Worker processes for one set of versions; see the module."""

    def __init__(
        self,
        launcher: Launcher,
        limits: PoolLimits,
        hooks: PoolHooks | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Prepares; `start` is called on the event loop.

        Args:
            launcher: starts worker processes.
            limits: see `PoolLimits`.
            hooks: see `PoolHooks`.
            clock: monotonic seconds; deadlines are on the same clock.
            sleep: waits before a worker is started anew.
        """
        hooks = hooks or PoolHooks()
        self._limits = limits
        self._clock = clock
        self._queue: deque[Order] = deque()
        self._open: set[asyncio.Future[Answered]] = set()  # somebody waits for these
        self._seats: list[Seat] = []
        self._rules = Rules(
            launcher,
            limits.tolerance,
            Hooks(self._dispatch, hooks.on_worked),
            hooks.on_replaced,
            self._on_change,
            clock,
            sleep,
        )
        self._looking: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._closing = False
        self._looked_s = clock()
        self._picture_s = 0.0  # seconds of a lane that a picture costs; 0 until the first answer

    @property
    def n_live(self) -> int:
        """Workers that take new work."""
        return sum(member.takes_work for member in self._members())

    @property
    def n_lanes(self) -> int:
        """Runs that can be made at the same time."""
        return self.n_live * self._limits.lanes

    @property
    def n_owed(self) -> int:
        """Pictures that workers have."""
        return sum(member.n_owed for member in self._members())

    def waiting(self, name: str) -> int:
        """Returns how many pictures for a model wait for a worker."""
        return sum(order.key[0] == name for order in self._queue if not order.future.done())

    def states(self) -> Counter[str]:
        """Returns how many workers are starting, live, doubtful and retiring."""
        found = Counter(member.state() for member in self._members() if not member.ended)
        found["starting"] = sum(seat.member is None or seat.member.ended for seat in self._seats)
        return found

    def expected_s(self) -> float:
        """Returns in how many seconds a picture that came now would be answered.

        0 if that is not known or nothing is ahead of it; see `Batcher.expected_s`.
        """
        lanes = max(1, self.n_live) * self._limits.lanes
        ahead = len(self._queue) + self.n_owed
        return self._picture_s * (ahead / lanes + 1) if ahead else 0.0

    def start(self, ready: Sequence[Launched]) -> None:
        """Takes these workers over on the running event loop and keeps as many from now on."""
        for number, launched in enumerate(ready):
            seat = Seat(number, self._rules)
            self._seats.append(seat)
            seat.take(launched)
        self._looking = asyncio.create_task(self._look_again(), name="look-at-workers")

    async def answer(self, key: tuple[str, int], image: bytes, deadline_s: float) -> Answered:
        """Answers one image file; see `Answerer.answer`.

        Args:
            key: name and number of the version.
            image: the whole file.
            deadline_s: on the pool's clock.

        Raises:
            ImageError, ServiceError: as the worker raised them.
            WorkerLost: the worker ended before it answered.
            DeadlineExceeded: nobody answered in time.
            ModelNotReady: no worker is there, nor is one to be expected soon.
            Draining: the pool is stopping.
        """
        if self._closing:
            raise Draining("the service is shutting down")
        if self._hopeless():
            raise ModelNotReady("no worker process is running")
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        order = Order(next(self._numbers), key, image, deadline_s, future)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        self._queue.append(order)
        self._dispatch()
        try:
            async with asyncio.timeout(max(0.0, deadline_s - self._clock())):
                answered = await future
        except TimeoutError as error:
            raise DeadlineExceeded("no worker answered within the deadline") from error
        finally:
            self._let_go(order)
        self._learn(answered)
        return answered

    def look(self) -> None:
        """Looks at every worker: sends pings, ends those that hang."""
        now_s = self._clock()
        excused = now_s - self._looked_s > _HELD_UP * LOOK_S
        self._looked_s = now_s
        for member in self._members():
            member.look(excused=excused)
        self._dispatch()

    async def drain(self) -> None:
        """Refuses new pictures and returns when every accepted one is answered."""
        self._closing = True
        while self._open:
            await asyncio.wait(self._open)  # which does not cancel them when given up

    async def stop(self, timeout_s: float = 5.0) -> bool:
        """Drains for a limited time, then ends the workers.

        Returns:
            True if everything accepted was answered in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self.drain()
        except TimeoutError:
            finished = False
        else:
            finished = True
        if self._looking is not None:
            self._looking.cancel()
        self._fail_waiting(Draining("the service stopped before this picture was run"))
        await asyncio.gather(*(seat.leave() for seat in self._seats))
        return finished

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.look()

    def _dispatch(self) -> None:
        while self._queue:
            if self._queue[0].future.done():
                self._queue.popleft()
                continue
            free = [
                member
                for member in self._members()
                if member.takes_work and member.n_owed < self._limits.in_flight
            ]
            if not free:
                return
            min(free, key=lambda member: member.n_owed).ask(self._queue.popleft())

    def _let_go(self, order: Order) -> None:
        order.image = b""  # an order that is given up may stay in the queue for a while
        if not order.future.cancelled() or order.member is None:
            return
        # What has expired is dropped by the worker itself, before its run; where it is in a run, the
        # worker goes on owing the reply, and a run that hangs is found out by that.
        if order.deadline_s - self._clock() > _CLOCKS_DIFFER_S:
            order.member.cancel(order)

    def _learn(self, answered: Answered) -> None:
        spent_s = answered.decode_s + answered.preprocess_s
        spent_s += answered.infer_s / max(1, answered.batch_size)
        weight = _COST_WEIGHT if self._picture_s else 1.0
        self._picture_s += (spent_s - self._picture_s) * weight

    def _members(self) -> list[Member]:
        return [member for seat in self._seats for member in seat.members]

    def _hopeless(self) -> bool:
        return all(seat.hopeless for seat in self._seats)

    def _on_change(self) -> None:
        self._dispatch()
        if self._hopeless():
            self._fail_waiting(ModelNotReady("no worker process is running"))

    def _fail_waiting(self, error: ServiceError) -> None:
        while self._queue:
            self._queue.popleft().fail(error)

"""One worker as the front sees it: what it was given, what it owes, and how it ends.

Lives on the event loop. Every picture that is sent is owed a reply, also one that nobody waits for
any more: only so can a worker that hangs be told from one that is done.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from service.errors import DeadlineExceeded, WorkerLost
from service.serving.answering import Answered
from service.workers import wire
from service.workers.vitals import Reason, Vitals
from service.workers.wire import Frame, Kind, WireBroken, Worked

log = logging.getLogger(__name__)


class Process(Protocol):
    """The operating system's side of a worker; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    def poll(self) -> int | None:
        """Returns the exit status (negative: the signal that ended it), or None while it runs."""
        ...

    def kill(self) -> None:
        """Ends it at once."""
        ...

    def wait(self) -> int:
        """Blocks until it has exited, and returns as `poll`."""
        ...


@dataclass(slots=True, eq=False)
class Order:
    """One picture on its way to an answer.

    Attributes:
        id: as it is called on the wire.
        key: name and number of the version.
        image: the whole file; empty once nobody waits for the answer.
        deadline_s: on the pool's clock.
        future: of the answer.
        member: who has it; None while it waits.
        sent_s: since when, on the pool's clock.
    """

    id: int
    key: tuple[str, int]
    image: bytes
    deadline_s: float
    future: asyncio.Future[Answered]
    member: Member | None = None
    sent_s: float = 0.0

    def fail(self, error: Exception) -> None:
        """Answers with an error, unless it has been answered or given up."""
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Hooks:
    """Whom a worker tells.

    Attributes:
        on_free: it can take more work.
        on_worked: its lanes have done something.
    """

    on_free: Callable[[], None]
    on_worked: Callable[[Worked], None]


class Member(asyncio.Protocol):
    """One worker process that has said it is ready.

    Attributes:
        process: its handle.
        vitals: its signs of life.
        condemned: becomes the reason why it has to be replaced.
        idle: set while it owes nothing.
        retiring: it finishes what it has and gets nothing new.
        ended: nothing comes from it any more.
        has_answered: at least one picture.
        n_lost: pictures that it had when it ended and somebody still waited for.
    """

    def __init__(
        self, process: Process, vitals: Vitals, hooks: Hooks, clock: Callable[[], float]
    ) -> None:
        """Prepares; the connection is made by the pool, on the event loop."""
        self.process = process
        self.vitals = vitals
        self.condemned: asyncio.Future[Reason] = asyncio.get_running_loop().create_future()
        self.idle = asyncio.Event()
        self.idle.set()
        self.retiring = False
        self.ended = False
        self.has_answered = False
        self.n_lost = 0
        self._closed = False
        self._hooks = hooks
        self._clock = clock
        self._since_s = clock()
        self._owed: dict[int, Order] = {}
        self._reader = wire.FrameReader(wire.MAX_CONTROL_BYTES)
        self._transport: asyncio.Transport | None = None

    @property
    def n_owed(self) -> int:
        """Pictures that it has and has not replied to."""
        return len(self._owed)

    @property
    def lived_s(self) -> float:
        """Seconds since it was ready."""
        return self._clock() - self._since_s

    def state(self) -> str:
        """Returns live, doubtful or retiring."""
        if self.retiring:
            return "retiring"
        return "doubtful" if self.vitals.doubtful(self._clock()) else "live"

    @property
    def takes_work(self) -> bool:
        """True while it may be given pictures."""
        return not (self.ended or self.retiring or self.vitals.doubtful(self._clock()))

    def ask(self, order: Order) -> None:
        """Gives it a picture to answer."""
        order.member = self
        order.sent_s = self._clock()
        self._owed[order.id] = order
        self.idle.clear()
        ask = wire.Ask(*order.key, order.deadline_s - order.sent_s, order.image)
        self._write(*wire.pack_ask(order.id, ask))

    def cancel(self, order: Order) -> None:
        """Tells it that nobody waits for a picture any more."""
        if order.id in self._owed:
            self._write(wire.pack(Kind.CANCEL, order.id))

    def look(self, *, excused: bool) -> None:
        """Sends a ping if one is due, and condemns the worker if its signs of life are bad.

        Args:
            excused: the front was held up, so that silence means nothing this time.
        """
        now_s = self._clock()
        if self.ended:
            return
        if excused:
            self.vitals.excuse(now_s)
        if (number := self.vitals.next_ping(now_s)) is not None:
            self._write(wire.pack(Kind.PING, number))
        due_s = (self.vitals.due_s(one.sent_s, one.deadline_s) for one in self._owed.values())
        reason = self.vitals.verdict(now_s, min(due_s, default=math.inf))
        if reason and not (self.retiring and reason.can_wait):
            self.condemn(reason)

    def condemn(self, reason: Reason) -> None:
        """Says that the worker must be replaced; a reason that cannot wait ends it at once."""
        if not reason.can_wait:
            self.end(reason)
        if not self.condemned.done():
            self.condemned.set_result(reason)

    def end(self, reason: Reason = Reason.EXITED) -> None:
        """Ends the process and answers what it owes."""
        if self.ended:
            return
        self.ended = True
        self.process.kill()
        if self._transport is not None:
            self._transport.abort()
        now_s = self._clock()
        self.n_lost = sum(not order.future.done() for order in self._owed.values())
        for order in self._owed.values():
            if now_s >= order.deadline_s:
                order.fail(DeadlineExceeded("the worker did not answer within the deadline"))
            else:
                order.fail(WorkerLost(_lost(reason)))
        self._owed.clear()
        self.idle.set()

    def close(self) -> None:
        """Ends the connection, at which the process exits by itself."""
        self.retiring = self._closed = True
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport; part of asyncio's protocol."""
        # Not isinstance: the transports of uvloop are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The process has ended, or we have closed; part of asyncio's protocol."""
        if self._closed and not self._owed:
            self.ended = True  # as it should be: the process exits by itself
        self.condemn(Reason.EXITED)

    def data_received(self, data: bytes) -> None:
        """Takes what the worker says; part of asyncio's protocol."""
        try:
            for frame in self._reader.feed(data):
                self._handle(frame)
        except WireBroken as error:
            log.error("a worker broke the protocol", extra={"reason": str(error)})
            self.condemn(Reason.EXITED)

    def _handle(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.ANSWER:
                self.has_answered = True
                order, answered = self._settle(frame), wire.unpack_answer(frame.payload)
                if not order.future.done():
                    order.future.set_result(answered)
            case Kind.REFUSAL:
                self.has_answered = True
                self._settle(frame).fail(wire.unpack_refusal(frame.payload))
            case Kind.CANCELLED:
                self._settle(frame).fail(
                    WorkerLost(_lost(Reason.EXITED))
                )  # nobody waits, as a rule
            case Kind.PONG:
                doubted = self.vitals.doubtful(self._clock())
                self.vitals.heard(frame.id, wire.unpack_pong(frame.payload))
                if doubted:
                    self._hooks.on_free()
            case Kind.WORKED:
                self._hooks.on_worked(wire.unpack_worked(frame.payload))
            case Kind.RETIRE:
                self.condemn(Reason.TERMINATED)
            case _:
                raise WireBroken(f"a worker does not send {frame.kind.name}")

    def _settle(self, frame: Frame) -> Order:
        order = self._owed.pop(frame.id, None)
        if order is None:
            raise WireBroken("a reply that nobody asked for")
        self.vitals.replied(self._clock() - order.sent_s)
        if not self._owed:
            self.idle.set()
        self._hooks.on_free()
        return order

    def _write(self, *pieces: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(pieces)


def _lost(reason: Reason) -> str:
    what = {Reason.SILENT: "stopped responding", Reason.OVERDUE: "hung"}.get(reason, "ended")
    return f"the worker process {what} before this picture was answered; try again"

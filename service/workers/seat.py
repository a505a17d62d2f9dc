"""The place of one worker after the other: starts it, watches for its end, starts the next."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Final

from service.workers.launch import Launched, Launcher
from service.workers.member import Hooks, Member, Process
from service.workers.vitals import Reason, Tolerance, Vitals

log = logging.getLogger(__name__)

FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 30.0
SETTLED_S: Final = 60.0
"""A worker that lived so long, or has answered, shows that starting another is worth it."""

_HOPELESS_S: Final = 1.0  # where the next start is further away, nobody is made to wait for it
_EXIT_S: Final = 2.0  # how long a worker whose connection was closed may take to exit
_PAUSE_S: Final = 0.02  # between looks at what ends within milliseconds


@dataclass(frozen=True, slots=True)
class Rules:
    """What all seats of a pool have in common.

    Attributes:
        launcher: starts worker processes.
        tolerance: what a worker may do before it is replaced.
        hooks: whom a worker tells.
        on_replaced: called when a worker has to be replaced.
        on_change: called when a worker has become ready, or could not be started.
        clock: monotonic seconds.
        sleep: waits before a start.
        one_at_a_time: held while a worker that can wait is being replaced.
    """

    launcher: Launcher
    tolerance: Tolerance
    hooks: Hooks
    on_replaced: Callable[[Reason], None]
    on_change: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)


class Seat:
    """Keeps one worker there."""

    def __init__(self, number: int, rules: Rules) -> None:
        """Prepares an empty seat; `take` fills it."""
        self.member: Member | None = None
        self._launched: Launched | None = None
        self._number = number
        self._rules = rules
        self._delay_s = 0.0
        self._leaving: set[Member] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def members(self) -> list[Member]:
        """The worker in the seat, if there is one, and those that are on their way out."""
        return [*([self.member] if self.member else []), *self._leaving]

    @property
    def hopeless(self) -> bool:
        """True while there is no worker, and none to be expected soon."""
        return (self.member is None or self.member.ended) and self._delay_s > _HOPELESS_S

    def take(self, launched: Launched) -> None:
        """Puts a worker into the seat on the running event loop and keeps one there from now on."""
        self._launched = launched
        self._begin(self._keep(), f"worker-{self._number}")

    async def leave(self) -> None:
        """Ends the worker and starts no other."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._launched is not None:
            self._launched.abort()
        for member in self.members:
            if member.n_owed:
                member.end()
            else:
                member.close()
        await asyncio.gather(*(_exited(member.process) for member in self.members))
        self.member = None
        self._leaving.clear()

    async def _keep(self) -> None:
        while True:
            launched = self._launched or await self._launch()
            self._launched = None
            self.member = member = await self._connect(launched)
            self._rules.on_change()
            reason = await member.condemned
            self._rules.on_replaced(reason)
            self._forgive(member, reason)
            if reason.can_wait:
                async with self._rules.one_at_a_time:
                    self._launched = await self._launch()
                self._leaving.add(member)
                self._begin(self._see_off(member, reason), "see-off")
            else:
                self.member = None
                _say_replaced(member, reason, await _exited(member.process))

    def _forgive(self, member: Member, reason: Reason) -> None:
        # A worker that has answered was worth its start; but one that is over its memory limit as
        # soon as it works would be replaced for ever.
        if member.lived_s > SETTLED_S or (member.has_answered and not reason.can_wait):
            self._delay_s = 0.0

    async def _launch(self) -> Launched:
        """Starts a worker, again and again until one is ready."""
        while True:
            await self._rules.sleep(self._delay_s)
            self._delay_s = min(LONGEST_DELAY_S, max(FIRST_DELAY_S, 2 * self._delay_s))
            try:
                return await self._rules.launcher.launch()
            except Exception as error:  # noqa: BLE001 - no failed start must end the seat
                log.error("a worker did not start", extra={"reason": str(error)})
                self._rules.on_change()

    async def _connect(self, launched: Launched) -> Member:
        rules = self._rules
        # It has just run every model's largest batch, among other things.
        usual_s = max((facts["load_s"] for facts in launched.facts), default=0.0)
        vitals = Vitals(rules.tolerance, rules.clock(), usual_s)
        member = Member(launched.process, vitals, rules.hooks, rules.clock)
        loop = asyncio.get_running_loop()
        try:
            await loop.create_unix_connection(lambda: member, sock=launched.sock)
        except BaseException:
            launched.abort()
            raise
        log.info("worker ready", extra={"pid": member.process.pid})
        return member

    async def _see_off(self, member: Member, reason: Reason) -> None:
        """Lets a worker finish what it has, and then ends it."""
        member.retiring = True
        await member.idle.wait()  # a worker that does not reply is ended by the pool's look
        member.close()
        _say_replaced(member, reason, await _exited(member.process))
        self._leaving.discard(member)

    def _begin(self, work: Coroutine[object, object, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.critical("a worker is not kept any more", exc_info=task.exception())


async def _exited(process: Process) -> int | None:
    """Waits until the process has exited; kills it if that takes long.

    Returns:
        Its exit status, or None if even killing did not end it.
    """
    for _ in range(2):
        for _ in range(round(_EXIT_S / _PAUSE_S)):
            if (status := process.poll()) is not None:
                return status
            await asyncio.sleep(_PAUSE_S)
        process.kill()
    return None


def _say_replaced(member: Member, reason: Reason, status: int | None) -> None:
    ended: dict[str, int | str] = {} if status is None else {"exit_status": status}
    if status is not None and status < 0:
        ended = {"signal": signal.Signals(-status).name}
    log.warning(
        "worker replaced",
        extra={
            "pid": member.process.pid,
            "reason": str(reason),
            "pictures_lost": member.n_lost,
            **ended,
        },
    )

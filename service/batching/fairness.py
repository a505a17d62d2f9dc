"""Puts the pictures of several clients in order, so that none of them keeps the lanes.

Every picture gets a turn. A client's pictures have one turn after the other, and its first one has the
turn of the picture that was begun last. So pictures go round robin by client, and in the order of their
arrival if there is one client. This is start-time fair queueing (Goyal, Vin and Cheng, 1996), with a
cost of 1 for each picture.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Final

from service.batching.lane import QueueEntry
from service.system.pacing import RoundRobin

_RECENT_S: Final = 1.0


@dataclass(slots=True)
class _Peer:
    """A client with pictures that are not answered."""

    n_entries: int = 0
    next_turn: float = 0.0


class FairOrder:
    """Gives out turns; one for all queues of a batcher."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun = 0.0  # the turn of the picture that was begun last
        self._peers: dict[str, _Peer] = {}
        self._numbers = count()
        self._last_peer: str | None = None
        self._shared_s = -math.inf  # when a picture came while there was another client

    def enter(self, entry: QueueEntry) -> None:
        """Gives a picture its turn."""
        peer = self._peers.get(entry.peer)
        if peer is None:
            peer = self._peers[entry.peer] = _Peer()
        if len(self._peers) > 1 or self._last_peer not in (None, entry.peer):
            self._shared_s = self._clock()
        self._last_peer = entry.peer

        turn = max(self._begun, peer.next_turn)
        entry.order = turn, next(self._numbers)
        peer.next_turn = turn + 1
        peer.n_entries += 1

    def leave(self, entry: QueueEntry) -> None:
        """Forgets a picture that is answered, or whose client is gone."""
        peer = self._peers[entry.peer]
        peer.n_entries -= 1
        if not peer.n_entries:
            del self._peers[entry.peer]

    def begin(self, entries: list[QueueEntry]) -> None:
        """Notes that a lane begins with these pictures."""
        self._begun = max(self._begun, entries[-1].order[0])

    def shared(self) -> bool:
        """Returns whether several clients have sent pictures in the last second."""
        return self._clock() - self._shared_s < _RECENT_S

    def dominated(self) -> bool:
        """Returns whether one client has most of the pictures that are not answered."""
        counts = [peer.n_entries for peer in self._peers.values()]
        return 2 * max(counts, default=0) > sum(counts)

    def ahead_of(self, peer: str) -> int:
        """Returns the most pictures that come before a new one of this client, by their turns."""
        known = self._peers.get(peer)
        if known is None:
            return len(self._peers) + 1
        return (known.n_entries + 1) * len(self._peers)


class FairQueue:
    """Waiting pictures, by their turns."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, int], QueueEntry]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[QueueEntry]:
        """In no particular order."""
        return (entry for _, entry in self._heap)

    @property
    def first(self) -> QueueEntry:
        return self._heap[0][1]

    def push(self, entry: QueueEntry) -> None:
        heappush(self._heap, (entry.order, entry))

    def pop(self) -> QueueEntry:
        return heappop(self._heap)[1]


class FairSlots:
    """Bounds how much is done at the same time; clients that wait take turns."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting = RoundRobin[asyncio.Future[None]]()

    @asynccontextmanager
    async def slot(self, peer: str) -> AsyncIterator[None]:
        """Waits for a slot and holds it for the length of the block."""
        if self._free:
            self._free -= 1
        else:
            await self._turn(peer)
        try:
            yield
        finally:
            self._pass_on()

    async def _turn(self, peer: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(peer, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was given a slot at the last moment
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

"""Admission control: accepts or refuses each request before its body is read.

Every accepted request gets an answer. There is a limit on pictures and one on upload bytes in flight.
A refusal is immediate and says when to retry, from the rate at which pictures have been answered.

Clients share the limits. The last eighth of each is kept for clients that have less in flight than their
even share, so a client that has more is refused first. A client that has been alone for ten minutes may
use all of a limit.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self

from service.errors import Draining, Overloaded

_MAX_RETRY_AFTER_S = 60
_SAFETY_FACTOR = 1.2  # the expected wait is an average, and a late answer is worth nothing
_RATE_WINDOW = 64  # finished requests over which the rate is measured
_KEPT_PART: Final = 8  # one part in eight of a limit is for clients below their share
_ACTIVE_S: Final = 10.0  # a client without requests counts as one that shares for this long
_MAX_REFUSALS: Final = 1_000
_KEPT_S: Final = 600.0  # places are kept free for this long after there was more than one client


@dataclass(slots=True)
class _Usage:
    """What one client has in flight."""

    seen_s: float
    slots: int = 0
    images: int = 0
    n_bytes: int = 0


class Slot:
    """One request's share of the limits. It may grow, and is released as a whole.

    Its methods raise Draining or Overloaded, as `Admission.reserve` does.
    """

    __slots__ = ("_admission", "images", "n_bytes", "usage")

    def __init__(self, admission: Admission, usage: _Usage) -> None:
        self._admission = admission
        self.usage = usage
        self.images = 0
        self.n_bytes = 0

    def __enter__(self) -> Self:
        self.usage.slots += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.release(self)

    def add_bytes(self, n_bytes: int) -> None:
        self._admission.reserve(self.usage, images=0, n_bytes=n_bytes)
        self.n_bytes += n_bytes

    def add_images(self, images: int) -> None:
        self._admission.reserve(self.usage, images=images, n_bytes=0)
        self.images += images


class Admission:
    """Counts pictures and bytes in flight; used on the event loop only."""

    def __init__(
        self, *, max_images: int, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._clock = clock
        self._finished: deque[tuple[float, int]] = deque()  # when, pictures
        self._n_finished = 0  # their pictures
        self._usage: OrderedDict[str, _Usage] = OrderedDict()  # the longest unseen client first
        self._shared_s = -math.inf  # when there was last more than one client
        self._refusals: dict[str, Overloaded] = {}  # by client, until anything changes
        self.images = 0
        self.n_bytes = 0
        self.closed = False

    def slot(self, peer: str = "") -> Slot:
        """Opens a slot for one request of a client; leaving its `with` block releases it.

        Raises:
            Draining: the process takes no new work.
            Overloaded: a limit is reached already, so the body need not be read.
        """
        usage = self._usage_of(peer)
        # Only a check: a client that has sent just the headers must not hold a picture's place.
        self._check(usage, images=1, n_bytes=0)
        return Slot(self, usage)

    @property
    def crowded(self) -> bool:
        """True if there may be a client whose next request `slot` refuses."""
        return self.images >= self._max_images - self._max_images // _KEPT_PART

    def refusal(self, peer: str) -> Overloaded | None:
        """Returns why `slot` would refuse this client now, None if it would not."""
        refusal = self._refusals.get(peer)
        if refusal is None:
            refusal = self._refusal(self._usage_of(peer), images=1, n_bytes=0)
            if refusal is not None and len(self._refusals) < _MAX_REFUSALS:
                self._refusals[peer] = refusal
        return refusal

    def release(self, slot: Slot) -> None:
        self._refusals.clear()
        self.images -= slot.images
        self.n_bytes -= slot.n_bytes
        slot.usage.images -= slot.images
        slot.usage.n_bytes -= slot.n_bytes
        slot.usage.slots -= 1
        if slot.images:
            self._finished.append((self._clock(), slot.images))
            self._n_finished += slot.images
            if len(self._finished) > _RATE_WINDOW:
                self._n_finished -= self._finished.popleft()[1]

    def check_wait(self, expected_s: float, remaining_s: float) -> None:
        """Refuses a request that would be answered after its deadline.

        Args:
            expected_s: seconds until it would be answered; 0 if not known.
            remaining_s: seconds until its deadline.

        Raises:
            Overloaded: with the time after which the backlog will be short enough.
        """
        late_s = _SAFETY_FACTOR * expected_s - remaining_s
        if late_s > 0 and expected_s > 0:
            raise Overloaded(
                f"the answer would take about {expected_s * 1e3:.0f} ms, longer than the deadline",
                max(1, min(_MAX_RETRY_AFTER_S, math.ceil(late_s))),
                reason="deadline",
            )

    def reserve(self, usage: _Usage, *, images: int, n_bytes: int) -> None:
        """Counts a client's pictures and bytes as in flight.

        Raises:
            Draining: the process takes no new work.
            Overloaded: a limit or the client's share would be exceeded; nothing is counted.
        """
        self._check(usage, images=images, n_bytes=n_bytes)
        self._refusals.clear()
        self.images += images
        self.n_bytes += n_bytes
        usage.images += images
        usage.n_bytes += n_bytes

    def _check(self, usage: _Usage, *, images: int, n_bytes: int) -> None:
        if self.closed:
            raise Draining("the service is shutting down")
        if (refusal := self._refusal(usage, images=images, n_bytes=n_bytes)) is not None:
            raise refusal

    def _refusal(self, usage: _Usage, *, images: int, n_bytes: int) -> Overloaded | None:
        if self.images + images > self._max_images:
            return Overloaded(
                f"{self.images:,} pictures are in flight, the limit is {self._max_images:,}",
                self.retry_after_s(),
                reason="images",
            )
        if self.n_bytes + n_bytes > self._max_bytes:
            return Overloaded(
                f"{self.n_bytes:,} bytes of uploads are in flight, the limit is {self._max_bytes:,}",
                self.retry_after_s(),
                reason="bytes",
            )

        if self._clock() - self._shared_s >= _KEPT_S:
            return None
        n_peers = max(2, len(self._usage))  # one that is away may come back
        if _over_share(self._max_images, n_peers, self.images, usage.images, images):
            return Overloaded(
                f"{usage.images:,} pictures of this client are in flight, more than its share of "
                f"the limit of {self._max_images:,}, which {n_peers} clients share",
                self.retry_after_s(),
                reason="images",
            )
        if _over_share(self._max_bytes, n_peers, self.n_bytes, usage.n_bytes, n_bytes):
            return Overloaded(
                f"{usage.n_bytes:,} bytes of this client's uploads are in flight, more than its share "
                f"of the limit of {self._max_bytes:,}, which {n_peers} clients share",
                self.retry_after_s(),
                reason="bytes",
            )
        return None

    def _usage_of(self, peer: str) -> _Usage:
        """Returns what a client has in flight, and forgets clients that have not come for a while."""
        now_s = self._clock()
        usage = self._usage.get(peer)
        if usage is None:
            usage = self._usage[peer] = _Usage(now_s)
        if len(self._usage) > 1:
            self._shared_s = now_s
        usage.seen_s = now_s
        self._usage.move_to_end(peer)

        # Each call looks at one or two of those that came longest ago, so they never pile up.
        for _ in range(2):
            oldest, old = next(iter(self._usage.items()))
            if now_s - old.seen_s < _ACTIVE_S:
                break
            if old.slots:
                old.seen_s = now_s
                self._usage.move_to_end(oldest)
            else:
                del self._usage[oldest]
        return usage

    def retry_after_s(self) -> int:
        """Returns the whole seconds, 1 to 60, until the pictures in flight will be answered."""
        if len(self._finished) < 2:  # no rate yet
            return 1
        elapsed_s = self._clock() - self._finished[0][0]
        if elapsed_s <= 0:
            return 1
        seconds = math.ceil(self.images * elapsed_s / self._n_finished)
        return max(1, min(_MAX_RETRY_AFTER_S, seconds))


def _over_share(limit: int, n_peers: int, held: int, own: int, wanted: int) -> bool:
    """Returns whether a client would take from the part of a limit that is kept for others."""
    # A client's only request may be larger than its share: it could never be sent otherwise.
    return (
        own > 0
        and wanted > 0
        and own + wanted > limit // n_peers
        and held + wanted > limit - limit // _KEPT_PART
    )

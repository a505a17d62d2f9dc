"""Admission control: accepts or refuses each request before its body is read.

Every accepted request gets an answer. There is a limit on pictures and one on upload bytes in flight.
A refusal is immediate and says when to retry, from the rate at which pictures have been answered.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Self

from service.errors import Draining, Overloaded

_MAX_RETRY_AFTER_S = 60
_SAFETY_FACTOR = 1.2  # the expected wait is an average, and a late answer is worth nothing
_RATE_WINDOW = 64  # finished requests over which the rate is measured


class Slot:
    """One request's share of the limits. It may grow, and is released as a whole.

    Its methods raise Draining or Overloaded, as `Admission.reserve` does.
    """

    __slots__ = ("_admission", "images", "n_bytes")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.images = 0
        self.n_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.release(self)

    def add_bytes(self, n_bytes: int) -> None:
        self._admission.reserve(images=0, n_bytes=n_bytes)
        self.n_bytes += n_bytes

    def add_images(self, images: int) -> None:
        self._admission.reserve(images=images, n_bytes=0)
        self.images += images


class Admission:
    """Counts pictures and bytes in flight; used on the event loop only."""

    def __init__(
        self, *, max_images: int, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._clock = clock
        self._finished: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)  # when, pictures
        self.images = 0
        self.n_bytes = 0
        self.closed = False

    def slot(self) -> Slot:
        """Opens a slot for one request; leaving its `with` block releases it.

        Raises:
            Draining: the process takes no new work.
            Overloaded: a limit is reached already, so the body need not be read.
        """
        # Only a check: a client that has sent just the headers must not hold a picture's place.
        self.reserve(images=1, n_bytes=0)
        self.images -= 1
        return Slot(self)

    def release(self, slot: Slot) -> None:
        self.images -= slot.images
        self.n_bytes -= slot.n_bytes
        if slot.images:
            self._finished.append((self._clock(), slot.images))

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

    def reserve(self, *, images: int, n_bytes: int) -> None:
        """Counts pictures and bytes as in flight.

        Raises:
            Draining: the process takes no new work.
            Overloaded: a limit would be exceeded; nothing is counted.
        """
        if self.closed:
            raise Draining("the service is shutting down")

        if self.images + images > self._max_images:
            raise Overloaded(
                f"{self.images:,} pictures are in flight, the limit is {self._max_images:,}",
                self.retry_after_s(),
                reason="images",
            )
        if self.n_bytes + n_bytes > self._max_bytes:
            raise Overloaded(
                f"{self.n_bytes:,} bytes of uploads are in flight, the limit is {self._max_bytes:,}",
                self.retry_after_s(),
                reason="bytes",
            )

        self.images += images
        self.n_bytes += n_bytes

    def retry_after_s(self) -> int:
        """Returns the whole seconds, 1 to 60, until the pictures in flight will be answered."""
        if len(self._finished) < 2:  # no rate yet
            return 1
        elapsed_s = self._clock() - self._finished[0][0]
        if elapsed_s <= 0:
            return 1
        n_finished = sum(images for _, images in self._finished)
        return max(1, min(_MAX_RETRY_AFTER_S, math.ceil(self.images * elapsed_s / n_finished)))

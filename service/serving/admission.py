"""Decides at the door what is taken on, so that nothing accepted has to be dropped later.

Bounds are counted in pictures and in bytes of uploads. A refusal is immediate and says when to come
back, computed from how fast pictures have been leaving.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.errors import Draining, Overloaded

_MAX_RETRY_AFTER_S = 60
_CAUTION = 1.2  # an estimate is an average, and what comes late is worth nothing
_RATE_WINDOW = 64  # departures that the drain rate is measured over


class Slot:
    """What one request holds of the bounds; it may grow, and is given back as a whole."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.images = 0
        self.n_bytes = 0

    def add_bytes(self, n_bytes: int) -> None:
        """Takes on more bytes of the upload.

        Raises:
            Overloaded: the bytes of all uploads exceed the bound.
        """
        self._admission.reserve(images=0, n_bytes=n_bytes)
        self.n_bytes += n_bytes

    def add_images(self, images: int) -> None:
        """Takes on the pictures of the request.

        Raises:
            Overloaded: the pictures in flight exceed the bound.
        """
        self._admission.reserve(images=images, n_bytes=0)
        self.images += images


class Admission:
    """Counts what is in flight. Lives on the event loop; not for use from several threads."""

    def __init__(
        self, *, max_images: int, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Starts empty and open.

        Args:
            max_images: pictures in flight at most.
            max_bytes: bytes of uploads in flight at most.
            clock: monotonic seconds.
        """
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._clock = clock
        self._departures: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)
        self.images = 0
        self.n_bytes = 0
        self.closed = False

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """Opens a slot for one request and gives back what it holds in the end.

        Raises:
            Draining: the process takes no new work.
            Overloaded: a bound is reached already, so that reading the body would be in vain.
        """
        self.reserve(images=1, n_bytes=0)
        self.images -= 1  # only probed: a sender of headers does not hold a picture's place yet
        slot = Slot(self)
        try:
            yield slot
        finally:
            self.images -= slot.images
            self.n_bytes -= slot.n_bytes
            if slot.images:
                self._departures.append((self._clock(), slot.images))

    def check_wait(self, expected_s: float, left_s: float) -> None:
        """Refuses what would be answered too late: it would only take the place of others.

        Args:
            expected_s: seconds until it would be answered; 0 if that is not known.
            left_s: seconds until its deadline.

        Raises:
            Overloaded: it would be too late; says when the backlog will have shrunk enough.
        """
        late_s = _CAUTION * expected_s - left_s
        if late_s > 0 and expected_s > 0:
            raise Overloaded(
                f"the answer would take about {expected_s * 1e3:.0f} ms, longer than the deadline",
                max(1, min(_MAX_RETRY_AFTER_S, math.ceil(late_s))),
                reason="deadline",
            )

    def reserve(self, *, images: int, n_bytes: int) -> None:
        """Counts pictures and bytes as in flight, or refuses them.

        Raises:
            Draining: the process takes no new work.
            Overloaded: a bound would be exceeded.
        """
        if self.closed:
            raise Draining("the service is shutting down")
        if self.images + images > self._max_images:
            raise Overloaded(
                f"{self.images} pictures are in flight, the limit is {self._max_images}",
                self.retry_after_s(),
                reason="images",
            )
        if self.n_bytes + n_bytes > self._max_bytes:
            raise Overloaded(
                f"{self.n_bytes} bytes of uploads are in flight, the limit is {self._max_bytes}",
                self.retry_after_s(),
                reason="bytes",
            )
        self.images += images
        self.n_bytes += n_bytes

    def retry_after_s(self) -> int:
        """Returns in how many whole seconds, 1..60, what is in flight will have left."""
        if len(self._departures) < 2:
            return 1
        elapsed_s = self._clock() - self._departures[0][0]
        left = sum(images for _, images in self._departures)
        if elapsed_s <= 0:
            return 1
        return max(1, min(_MAX_RETRY_AFTER_S, math.ceil(self.images * elapsed_s / left)))

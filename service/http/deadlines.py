"""One absolute deadline for each request, from its head to its answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request

from service.errors import InvalidParameter
from service.http.scope import started_s_of

HEADER: Final = "x-request-timeout-ms"


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a request must be answered.

    Attributes:
        started_s: when its head was complete, on the clock.
        at_s: the deadline, on the clock.
        clock: monotonic seconds.
    """

    started_s: float
    at_s: float
    clock: Callable[[], float]

    def left_s(self) -> float:
        """Returns the seconds that are left, negative once it has passed."""
        return self.at_s - self.clock()

    def elapsed_s(self) -> float:
        """Returns the seconds since the head was complete."""
        return self.clock() - self.started_s


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long requests may take.

    Attributes:
        default_s: where the client does not say.
        max_s: at most, whoever asks for more.
        clock: monotonic seconds, the batchers' clock.
    """

    default_s: float
    max_s: float
    clock: Callable[[], float] = time.monotonic

    def of(self, request: Request) -> Deadline:
        """Returns a request's deadline.

        Raises:
            InvalidParameter: X-Request-Timeout-Ms is not a positive number of milliseconds.
        """
        asked = request.headers.get(HEADER)
        seconds = min(self.default_s if asked is None else _seconds(asked), self.max_s)
        started_s = started_s_of(request.scope) or self.clock()
        return Deadline(started_s, started_s + seconds, self.clock)


def _seconds(asked: str) -> float:
    try:
        milliseconds = float(asked)
    except ValueError:
        milliseconds = math.nan
    if not milliseconds > 0 or math.isinf(milliseconds):
        raise InvalidParameter("X-Request-Timeout-Ms: must be a positive number of milliseconds")
    return milliseconds / 1e3

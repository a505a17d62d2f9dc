"""Turns the X-Request-Timeout-Ms header into one absolute deadline for the whole request."""

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
    """A request's start and deadline, both in seconds on the monotonic `clock`."""

    started_s: float  # the request head was complete
    at_s: float
    clock: Callable[[], float]

    def remaining_s(self) -> float:
        return self.at_s - self.clock()  # negative once the deadline has passed

    def elapsed_s(self) -> float:
        return self.clock() - self.started_s


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Creates deadlines; `clock` must be the batcher's clock."""

    default_s: float  # if the client sends no header
    max_s: float  # for a longer one in the header, this counts
    clock: Callable[[], float] = time.monotonic

    def of(self, request: Request) -> Deadline:
        """Returns the deadline of a request.

        Raises:
            InvalidParameter: X-Request-Timeout-Ms is not a positive number of milliseconds.
        """
        header = request.headers.get(HEADER)
        timeout_s = self.default_s if header is None else min(_parse_s(header), self.max_s)

        # Time spent before the handler runs counts too. Without the edge, start now.
        started_s = started_s_of(request.scope) or self.clock()
        return Deadline(started_s, started_s + timeout_s, self.clock)


def _parse_s(header: str) -> float:
    try:
        milliseconds = float(header)
    except ValueError:
        milliseconds = math.nan
    if not milliseconds > 0 or math.isinf(milliseconds):  # `not >` also catches NaN
        raise InvalidParameter("X-Request-Timeout-Ms: must be a positive number of milliseconds")
    return milliseconds / 1e3

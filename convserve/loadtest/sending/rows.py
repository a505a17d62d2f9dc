"""How a sender reports requests: fixed-size rows, and the texts that they refer to by number."""

from __future__ import annotations

import struct
from collections.abc import Hashable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Statuses of requests without an answer. HTTP has none below 100.
UNANSWERED: Final = 0  # timed out, or still open when the run ended
BROKEN: Final = -1  # the connection ended first, or was never made

# Bits of `flags`.
WITH_BROKEN_PICTURE: Final = 1
RETRY_AFTER: Final = 2  # the answer had that header

MAX_STAGES: Final = 8  # entries of Server-Timing that are kept
NONE: Final = -1

# Times are in seconds from the start of the run. `lag` is how much later than intended the sender
# turned to the request. `item` is its position among the good or the broken requests; `answer` and
# `end` are positions in `Texts`. Stages are in ms, NaN where absent.
ROW: Final = np.dtype(
    [
        ("intended_s", "<f8"),
        ("sent_s", "<f8"),
        ("done_s", "<f8"),
        ("lag_s", "<f4"),
        ("status", "<i2"),
        ("flags", "<u2"),
        ("item", "<i4"),
        ("answer", "<i4"),
        ("end", "<i4"),
        ("stages", "<f4", (MAX_STAGES,)),
    ]
)
PACKER: Final = struct.Struct(f"<3df hH 3i {MAX_STAGES}f".replace(" ", ""))

Rows = NDArray[np.void]


def read_rows(data: bytes | bytearray) -> Rows:
    return np.frombuffer(bytes(data), dtype=ROW)


def latencies_s(rows: Rows) -> NDArray[np.float64]:
    """Returns the latencies; infinite without an answer, so that it counts as the slowest."""
    latencies: NDArray[np.float64] = np.where(
        rows["status"] <= 0, np.inf, rows["done_s"] - rows["intended_s"]
    )
    return latencies


class Texts:
    """Numbers texts in the order in which they first appear."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._new: list[Any] = []

    def number(self, key: Hashable, value: Any = None) -> int:
        """Returns the number of a key; `value` is what is reported for a new one."""
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._numbers)
            self._new.append(key if value is None else value)
        return number

    def take_new(self) -> list[Any]:
        """Returns what was added since the last call, in order."""
        new, self._new = self._new, []
        return new

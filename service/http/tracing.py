"""W3C Trace Context: the `traceparent` of a client, and the one that the answer carries."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

HEADER: Final = b"traceparent"
_TRACEPARENT: Final = re.compile(
    rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?"
)
_MAX_BYTES: Final = 512  # of a later version, which may be longer than the 55 of this one
_KNOWN_FLAGS: Final = 0x03  # sampled, and random trace id
_ids = random.Random()  # noqa: S311 - ids tell requests apart, they are not secret


@dataclass(frozen=True, slots=True)
class Trace:
    """The trace that a request belongs to.

    Attributes:
        trace_id: 32 hexadecimal digits, the client's.
        span_id: 16 hexadecimal digits, this request's own.
        flags: those of the client that are known here.
    """

    trace_id: str
    span_id: str
    flags: int

    def header(self) -> tuple[bytes, bytes]:
        return HEADER, f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}".encode()

    def fields(self) -> dict[str, str]:
        """Returns the fields of a log line."""
        return {"trace_id": self.trace_id, "span_id": self.span_id}


def trace_of(headers: Iterable[tuple[bytes, bytes]]) -> Trace | None:
    """Returns the trace of a request, None if it names none or several, or not as the rules want."""
    found = [value for name, value in headers if name == HEADER]
    if len(found) != 1 or len(found[0]) > _MAX_BYTES:
        return None
    parts = _TRACEPARENT.fullmatch(found[0])
    if parts is None:
        return None
    version, trace_id, parent_id, flags, more = parts.groups()
    if version == b"ff" or (version == b"00" and more):
        return None
    if not int(trace_id, 16) or not int(parent_id, 16):
        return None
    span_id = f"{_ids.getrandbits(64) or 1:016x}"
    return Trace(trace_id.decode(), span_id, int(flags, 16) & _KNOWN_FLAGS)

"""The program of a sender's process, which the fleet starts with the file of its plan.

It says when it is ready, starts when a start time comes in on stdin, and writes frames to stdout.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Final

from convserve.loadtest.sending.plan import from_json
from convserve.loadtest.sending.sender import Sender

# A frame: kind, length, content.
FRAME: Final = struct.Struct("<cI")
READY, ROWS, TEXTS, STATE, ENDED, FAILED = b"y", b"r", b"t", b"s", b"e", b"f"
CLOSED: Final = b"c"  # never written: what a reader makes of the end of the stream


def _hurry() -> None:
    """Asks for the cores at once when a request is due, where this user may ask for that."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        # Linux compares sessions first, and only then what runs in them.
        Path("/proc/self/autogroup").write_text("-10", encoding="ascii")


class _Output:
    """Writes what a sender has recorded since the last time."""

    def __init__(self, sender: Sender, stream: IO[bytes]) -> None:
        self._sender, self._stream = sender, stream

    def flush(self) -> None:
        sender = self._sender
        texts = {
            name: new
            for name in ("answers", "ends", "stages")
            if (new := getattr(sender, name).take_new())
        }
        if texts:  # before the rows that refer to them
            self.write(TEXTS, json.dumps(texts).encode())
        if sender.buffer:
            self.write(ROWS, bytes(sender.buffer))
            sender.buffer.clear()
        self.write(STATE, json.dumps(asdict(sender.counts)).encode())
        self._stream.flush()

    def write(self, kind: bytes, content: bytes = b"") -> None:
        self._stream.write(FRAME.pack(kind, len(content)) + content)


def main() -> None:
    """Reads a plan from a file, says when it is ready, and starts when a time comes in."""
    _hurry()
    stream = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)  # nothing else may write between the frames

    plan = from_json(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    try:
        sender = Sender(plan)
    except (OSError, UnicodeError) as error:
        # Most often a host whose name is not known, or cannot be one.
        why = f"{plan.target.host}: {getattr(error, 'strerror', None) or error}".encode()
        stream.write(FRAME.pack(FAILED, len(why)) + why)
        stream.flush()
        return

    signal.signal(signal.SIGTERM, lambda *_: sender.stop())
    output = _Output(sender, stream)
    output.write(READY)
    stream.flush()
    start = sys.stdin.readline()
    if not start:
        return  # the parent is gone

    with suppress(BrokenPipeError):
        sender.run(float(start), output.flush)
        output.flush()
        output.write(ENDED, json.dumps(sender.bodies).encode())
        stream.flush()

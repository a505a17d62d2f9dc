"""Structured logs: one JSON object per line on standard output, written by a separate thread.

A reader that stops reading must not stop the service. Records wait in a bounded queue; those that do
not fit are dropped and counted. JSON escapes control characters, so a client cannot forge a line.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import time
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any, Final, TextIO

_QUEUE_RECORDS = 10_000
_STANDARD_OUTPUT = 1  # file descriptor
_GATHER_S = 0.05  # records of this time are written together
_MAX_GATHERED = 256  # lines
_MAX_MESSAGE = 2_000  # characters
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message"}


class RequestRecord(logging.LogRecord):
    """The record of one request. It costs a third of an ordinary one, which looks for its caller."""

    _EMPTY: Final = logging.makeLogRecord({"msg": "request"}).__dict__

    def __init__(self, name: str, level: int, fields: dict[str, Any]) -> None:
        self.__dict__ = {
            **self._EMPTY,
            "name": name,
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "created": time.time(),
            **fields,
        }


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON, with the time when the record was created."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_MAX_MESSAGE],
        }
        line.update({k: v for k, v in record.__dict__.items() if k not in _STANDARD})  # `extra`

        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        elif record.exc_text:
            line["traceback"] = record.exc_text
        return json.dumps(line, default=str)


class DroppingQueueHandler(QueueHandler):
    """Passes records to the writing thread, or drops them if the queue is full. Never blocks."""

    def __init__(self, records: queue.SimpleQueue[Any], on_drop: Callable[[], None]) -> None:
        super().__init__(records)
        self._records = records
        self._on_drop = on_drop

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        # The traceback must be formatted on this thread. The rest can wait for the writer.
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        if self._records.qsize() < _QUEUE_RECORDS:
            self._records.put(record)
        else:
            self._on_drop()


class _LineWriter(QueueListener):
    """Writes one line per record, gathering the records of 50 ms into one write."""

    # Waking up for every record would cost more under load than writing it, because each time the
    # thread takes the interpreter lock from the event loop.
    #
    # It uses neither a `logging.Handler` nor `sys.stdout`. Both have a lock that the thread would hold
    # while the reader does not read, and the interpreter waits for that lock when it exits.

    def __init__(self, records: queue.SimpleQueue[Any], write: Callable[[str], object]) -> None:
        super().__init__(records)
        self._write = write
        self._formatter = JsonFormatter()
        self._records = records
        self._lines: list[str] = []

    def dequeue(self, block: bool) -> Any:
        # Returns the next record, None at the end. Writes the gathered lines before it waits.
        try:
            record: Any = self._records.get_nowait()
        except queue.Empty:
            self._flush()
            record = self._records.get(block)
            time.sleep(_GATHER_S)

        if record is None or len(self._lines) >= _MAX_GATHERED:
            self._flush()
        return record

    def handle(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a bad record must not end logging
            self._lines.append(self._formatter.format(record) + "\n")

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        with contextlib.suppress(Exception):  # neither must a closed pipe
            if lines:
                self._write("".join(lines))


def _write_to_standard_output(text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(_STANDARD_OUTPUT, data) :]  # a write to a pipe can be partial


class LogWriter:
    """Sends all logging of the process through one writing thread, from `start` to `stop`.

    Attributes:
        on_drop: called for each dropped record, if set.
    """

    def __init__(self, level: str, stream: TextIO | None = None) -> None:
        self.on_drop: Callable[[], None] | None = None
        self._level = level.upper()
        records: queue.SimpleQueue[Any] = queue.SimpleQueue()  # half the cost of a `Queue`
        self._handler = DroppingQueueHandler(records, self._dropped)
        self._listener = _LineWriter(records, stream.write if stream else _write_to_standard_output)

    def start(self) -> None:
        """Takes over the root logger and makes uvicorn's loggers pass their records to it."""
        root = logging.getLogger()
        root.handlers[:] = [self._handler]
        root.setLevel(self._level)

        for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
            # uvicorn's start and stop messages repeat ours. Its warnings and errors do not.
            logger.setLevel(logging.WARNING)

        self._listener.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Writes the queued records. Gives up after the timeout, in case the reader hangs."""
        thread = self._listener._thread
        self._listener.enqueue_sentinel()
        if thread is not None:
            thread.join(timeout_s)

    def _dropped(self) -> None:
        if self.on_drop is not None:
            self.on_drop()

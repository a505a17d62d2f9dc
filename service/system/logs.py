"""Structured logs: one JSON object a line on standard output, written by a thread of their own.

A reader that stops reading must not stop the service: records wait in a bounded queue, and what does
not fit is counted and dropped. Control characters in any value are escaped by JSON, so a client
cannot forge a line.
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
from typing import Any, TextIO

_QUEUE_RECORDS = 10_000
_STANDARD_OUTPUT = 1
_GATHER_S = 0.01
_MAX_GATHERED = 256
_MAX_MESSAGE = 2_000
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON with the time it was made."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record's time, level, logger, message, extra fields and traceback."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage()[:_MAX_MESSAGE],
        }
        line.update({k: v for k, v in record.__dict__.items() if k not in _STANDARD})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        elif record.exc_text:
            line["traceback"] = record.exc_text
        return json.dumps(line, default=str)


class DroppingQueueHandler(QueueHandler):
    """Hands records to the writing thread, or drops them where it has fallen behind."""

    def __init__(self, records: queue.Queue[Any], on_drop: Callable[[], None]) -> None:
        super().__init__(records)
        self._on_drop = on_drop

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Formats the traceback here, where the exception still lives, and keeps the rest."""
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Never blocks."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self._on_drop()


class _LineWriter(QueueListener):
    """Writes one line for each record, those of a hundredth of a second together.

    Under load, waking up for every record would cost more than writing it: the thread takes the
    interpreter from the event loop each time.

    Not through a `logging.Handler` or `sys.stdout`: both have a lock that the thread would hold while
    nobody reads, and that the interpreter waits for when it exits.
    """

    def __init__(self, records: queue.Queue[Any], write: Callable[[str], object]) -> None:
        super().__init__(records)
        self._write = write
        self._formatter = JsonFormatter()
        self._records = records
        self._lines: list[str] = []

    def dequeue(self, block: bool) -> Any:
        """Returns the next record, None at the end; writes what was gathered before it waits."""
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
        with contextlib.suppress(Exception):  # a bad record must not end the log
            self._lines.append(self._formatter.format(record) + "\n")

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        with contextlib.suppress(Exception):  # nor must a closed pipe
            if lines:
                self._write("".join(lines))


def _write_to_standard_output(text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(_STANDARD_OUTPUT, data) :]


class LogWriter:
    """Routes all logging of the process through one writing thread while it is running.

    Attributes:
        on_drop: called for each record that is dropped, if set.
    """

    def __init__(self, level: str, stream: TextIO | None = None) -> None:
        """Prepares; `start` begins.

        Args:
            level: debug, info, warning or error.
            stream: where the lines go; standard output if not given.
        """
        self.on_drop: Callable[[], None] | None = None
        self._level = level.upper()
        records: queue.Queue[Any] = queue.Queue(_QUEUE_RECORDS)
        self._handler = DroppingQueueHandler(records, self._dropped)
        self._listener = _LineWriter(records, stream.write if stream else _write_to_standard_output)

    def start(self) -> None:
        """Takes over the root logger; uvicorn's own loggers are made to pass records up to it."""
        root = logging.getLogger()
        root.handlers[:] = [self._handler]
        root.setLevel(self._level)
        for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
            logger = logging.getLogger(name)
            logger.handlers.clear()
            logger.propagate = True
            # Its start and stop messages repeat ours; warnings and errors do not.
            logger.setLevel(logging.WARNING)
        self._listener.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Writes what is queued, for a limited time: the reader may have stopped reading."""
        thread = self._listener._thread
        try:
            self._listener.enqueue_sentinel()
        except queue.Full:
            return
        if thread is not None:
            thread.join(timeout_s)

    def _dropped(self) -> None:
        if self.on_drop is not None:
            self.on_drop()

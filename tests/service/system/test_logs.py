from __future__ import annotations

import io
import json
import logging
import queue
import sys
import threading

import pytest

from service.system import logs
from service.system.logs import DroppingQueueHandler, JsonFormatter, LogWriter


def record(message: str = "hello", *args: object, **extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "a.b", "levelname": "INFO", "levelno": 20, "msg": message}
    )
    made.args = args
    made.__dict__.update(extra)
    return made


def formatted(made: logging.LogRecord) -> dict[str, object]:
    text = JsonFormatter().format(made)
    assert "\n" not in text
    line: dict[str, object] = json.loads(text)
    return line


def test_formatter_writes_the_time_of_the_record():
    line = formatted(record(created=0.25))

    assert line["time"] == "1970-01-01T00:00:00.250+00:00"


def test_formatter_writes_message_level_logger_and_extras():
    line = formatted(record("%s of %d", "one", 2, status=200, route="/x"))

    del line["time"]
    assert line == {
        "level": "info",
        "logger": "a.b",
        "message": "one of 2",
        "status": 200,
        "route": "/x",
    }


@pytest.mark.parametrize(
    "hostile", ["a\nb", "a\r\n{}", "\x1b[31m", "\x00", '"}', "\u2028", "\u202e"]
)
def test_formatter_writes_one_line_for_any_value(hostile):
    text = JsonFormatter().format(record(hostile, value=hostile))

    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["value"] == hostile


def test_formatter_value_that_json_cannot_encode_is_written_as_text():
    assert formatted(record(value={1}))["value"] == "{1}"


def test_formatter_long_message_is_cut():
    assert len(str(formatted(record("x" * 100_000))["message"])) == 2000


def test_formatter_exception_becomes_a_field():
    try:
        raise KeyError("k")
    except KeyError:
        line = formatted(record(exc_info=sys.exc_info()))

    assert "KeyError" in str(line["traceback"])


def test_handler_full_queue_drops_and_counts(monkeypatch):
    records: queue.SimpleQueue[object] = queue.SimpleQueue()
    monkeypatch.setattr(logs, "_QUEUE_RECORDS", 2)
    dropped: list[int] = []
    handler = DroppingQueueHandler(records, lambda: dropped.append(1))

    for _ in range(5):
        handler.emit(record())

    assert (records.qsize(), len(dropped)) == (2, 3)


def test_handler_keeps_the_traceback_but_not_the_exception():
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler = DroppingQueueHandler(records, lambda: None)

    try:
        raise KeyError("k")
    except KeyError:
        handler.emit(record(exc_info=sys.exc_info()))

    kept = records.get_nowait()
    assert kept.exc_info is None
    assert "KeyError" in str(formatted(kept)["traceback"])


def test_writer_writes_every_record_before_it_stops():
    stream = io.StringIO()
    writer = LogWriter("info", stream)
    writer.start()
    for number in range(100):
        logging.getLogger("x").info("line", extra={"number": number})
    logging.getLogger("x").debug("quiet")

    writer.stop()

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["number"] for line in lines] == list(range(100))


def test_writer_writes_only_the_warnings_of_uvicorn():
    stream = io.StringIO()
    writer = LogWriter("info", stream)
    writer.start()
    logging.getLogger("uvicorn.error").info("Started server process")
    logging.getLogger("uvicorn.error").warning("Invalid")

    writer.stop()

    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["Invalid"]


class StalledStream(io.StringIO):
    """A pipe whose reader never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.open = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.open.wait()
        return super().write(text)


def test_writer_with_a_stalled_reader_never_blocks_and_stops_in_time(monkeypatch):
    monkeypatch.setattr("service.system.logs._QUEUE_RECORDS", 10)
    stream, dropped = StalledStream(), []
    writer = LogWriter("info", stream)
    writer.on_drop = lambda: dropped.append(1)
    writer.start()
    logging.getLogger("x").info("first")
    stream.entered.wait()

    for _ in range(50):
        logging.getLogger("x").info("more")
    writer.stop(timeout_s=0)

    assert len(dropped) == 40
    stream.open.set()


def test_writer_survives_a_record_that_cannot_be_formatted():
    stream = io.StringIO()
    writer = LogWriter("info", stream)
    writer.start()
    logging.getLogger("x").info("%d", "no number")
    logging.getLogger("x").info("next")

    writer.stop()

    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["next"]


def test_writer_without_stream_writes_to_standard_output(capfd):
    writer = LogWriter("info")
    writer.start()
    logging.getLogger("x").info("hello")

    writer.stop()

    assert json.loads(capfd.readouterr().out)["message"] == "hello"


def test_writer_writes_a_burst_together_and_in_order():
    writes: list[str] = []

    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    writer = LogWriter("info", Stream())
    writer.start()
    for number in range(600):
        logging.getLogger("service.access").info("%d", number)
    writer.stop()

    lines = "".join(writes).splitlines()
    assert [json.loads(line)["message"] for line in lines] == [str(n) for n in range(600)]
    assert len(writes) < 60

import io
import re

import pytest

from convserve.loadtest.running.progress import Progress, Snapshot

RUNNING = Snapshot(
    elapsed_s=12.4,
    total_s=60.0,
    phase="trial 3, 240/s",
    sent_per_s=240.3,
    goodput_per_s=98.25,
    p50_ms=24.06,
    p99_ms=1312.4,
    errors={"timeout": 12, "overloaded": 3},
    in_flight=14,
)
SGR = re.compile(r"\x1b\[[\d;]*m")


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(io.StringIO):
    n_writes = 0

    def write(self, text: str) -> int:  # noqa: ARG002
        self.n_writes += 1
        raise BrokenPipeError


class Screen:
    """The lines that a terminal shows after some output."""

    def __init__(self, output: str) -> None:
        self.lines, self._row, self._column = [""], 0, 0
        for code, text in re.findall(r"(\x1b\[[?\d;]*[A-Za-z])|([^\x1b])", output):
            self._escape(code) if code else self._write(text)

    def _escape(self, code: str) -> None:
        if code.endswith("A"):
            self._row -= int(code[2:-1] or 1)
        elif code.endswith("K"):
            self.lines[self._row] = ""
        elif code[-1] not in "mhl":
            raise AssertionError(code)

    def _write(self, text: str) -> None:
        if text == "\n":
            self._row, self._column = self._row + 1, 0
            self.lines += [""] * (self._row + 1 - len(self.lines))
        elif text == "\r":
            self._column = 0
        else:
            line = self.lines[self._row].ljust(self._column)
            self.lines[self._row] = line[: self._column] + text + line[self._column + 1 :]
            self._column += 1

    @property
    def text(self) -> list[str]:
        return [line.rstrip() for line in self.lines if line.strip()]


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")


def test_plain_progress_writes_one_line_every_five_seconds():
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream, clock)

    for _ in range(41):  # ten seconds, four times a second
        progress.update(RUNNING)
        clock.now_s += 0.25
    progress.close()

    line = (
        "12 of 60 s, trial 3, 240/s, sent 240/s, right 98.2/s, p50 24.1 ms, p99 1,312 ms, "
        "in flight 14, errors: timeout 12, overloaded 3\n"
    )
    assert stream.getvalue() == 2 * line


def test_plain_progress_writes_lasting_lines_at_once():
    stream = io.StringIO()

    with Progress(stream, Clock()) as progress:
        progress.say("trial 3, 240/s: kept the objective")

    assert stream.getvalue() == "trial 3, 240/s: kept the objective\n"


def test_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()

    with Progress(stream, Clock()) as progress:
        progress.update(RUNNING)

    assert stream.getvalue() == ""


def test_terminal_shows_place_numbers_and_errors():
    stream = Terminal()
    progress = Progress(stream)

    progress.update(RUNNING)
    progress.update(RUNNING)

    place, numbers, errors = Screen(stream.getvalue()).text
    assert re.fullmatch(r"trial 3, 240/s +\S+ +12 of 60 s", place)
    assert numbers == "sent 240/s   right 98.2/s   p50 24.1 ms   p99 1,312 ms   in flight 14"
    assert errors == "errors: timeout 12, overloaded 3"


def test_terminal_without_answers_shows_no_latency_and_no_errors():
    stream = Terminal()

    Progress(stream).update(Snapshot(0.2, 5.0, "warm-up", 0, 0, None, None))

    _, numbers = Screen(stream.getvalue()).text
    assert "p50 -   p99 -" in numbers


def test_terminal_keeps_lasting_lines_only():
    stream = Terminal()

    with Progress(stream) as progress:
        progress.update(RUNNING)
        progress.say("trial 3, 240/s: kept the objective")
        progress.update(RUNNING)
        progress.say("trial 4, 260/s: p99 was 312.0 ms")

    assert Screen(stream.getvalue()).text == [
        "trial 3, 240/s: kept the objective",
        "trial 4, 260/s: p99 was 312.0 ms",
    ]
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h") == 1


def test_terminal_lines_never_wrap(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()

    Progress(stream).update(RUNNING)

    lines = Screen(stream.getvalue()).text
    assert len(lines) == 3
    assert all(len(line) <= 40 for line in lines)


def test_no_color_is_respected(monkeypatch):
    coloured, plain = Terminal(), Terminal()
    Progress(coloured).update(RUNNING)
    monkeypatch.setenv("NO_COLOR", "1")

    Progress(plain).update(RUNNING)

    def colours(stream: io.StringIO) -> list[str]:
        return [code for code in SGR.findall(stream.getvalue()) if re.search(r"[34]\d", code)]

    assert colours(coloured)
    assert not colours(plain)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal], ids=["plain", "terminal"])
def test_control_characters_from_a_server_are_not_written(stream):
    out, clock = stream(), Clock()
    evil = Snapshot(1, 5, "a\x1b[2Jb", 1, 1, None, None, {"c\x1b]0;d\x07": 1})
    progress = Progress(out, clock)
    clock.now_s += 6

    progress.update(evil)
    progress.say("e\x1b[2J")

    assert "\x1b[2J" not in out.getvalue()
    assert "\x1b]0" not in out.getvalue()
    assert "c?]0;d? 1" in out.getvalue()


def test_stream_that_fails_does_not_end_the_load_test():
    stream = Closed()

    with Progress(stream, Clock()) as progress:
        progress.say("one")
        progress.say("two")

    assert stream.n_writes > 0

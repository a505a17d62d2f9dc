"""Live progress of a load test: redrawn lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, Self, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

_EVERY_S: Final = 5.0  # from one plain line to the next
_BAR_CHARACTERS: Final = 32


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A load test at one moment. Rates and latencies are those of the last seconds.

    Attributes:
        elapsed_s: since the phase's course began, its warm-up included.
        total_s: what `elapsed_s` will be at its end.
        phase: such as `warm-up` or `trial 3, 240/s`.
        p50_ms: None without requests, or where they got no answer.
        p99_ms: likewise.
        errors: number so far by code, the most frequent first.
    """

    elapsed_s: float
    total_s: float
    phase: str
    sent_per_s: float
    goodput_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    errors: Mapping[str, int] = field(default_factory=dict)
    in_flight: int = 0


class _Display(Protocol):
    def update(self, snapshot: Snapshot) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


class Progress:
    """Shows what a load test is doing. A stream that fails is ignored: the test goes on."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._display: _Display = _Live(stream) if terminal else _Lines(stream, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, snapshot: Snapshot) -> None:
        """Shows the present state; call it as often as you like."""
        with suppress(OSError, ValueError):
            self._display.update(snapshot)

    def say(self, text: str) -> None:
        """Writes a line that stays."""
        with suppress(OSError, ValueError):
            self._display.say(_printable(text))

    def close(self) -> None:
        """Removes what does not stay. Closing twice is fine."""
        with suppress(OSError, ValueError):
            self._display.close()


class _Lines:
    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream, self._clock = stream, clock
        self._next_s = clock() + _EVERY_S

    def update(self, snapshot: Snapshot) -> None:
        if self._clock() < self._next_s:
            return
        self._next_s = self._clock() + _EVERY_S
        parts = [_place(snapshot), _numbers(snapshot, ", "), _errors(snapshot)]
        self.say(", ".join(part for part in parts if part))

    def say(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


class _Live:
    """Up to three lines that are drawn again with each update, and cleared at the end."""

    def __init__(self, stream: TextIO) -> None:
        # Not installed with the service; the extra `loadtest` has it.
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=stream, highlight=False)
        # Updates draw by themselves: a thread for it would take CPU time from the senders.
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def update(self, snapshot: Snapshot) -> None:
        if not self._live.is_started:
            self._live.start()
        self._live.update(_drawn(snapshot), refresh=True)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        self._live.stop()


def _drawn(snapshot: Snapshot) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    bar = ProgressBar(total=snapshot.total_s, completed=snapshot.elapsed_s, width=_BAR_CHARACTERS)
    top = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(3):
        top.add_column(no_wrap=True, overflow="ellipsis")
    top.add_row(Text(_printable(snapshot.phase), style="bold"), bar, Text(_time(snapshot)))

    lines = [Text(_numbers(snapshot, "   "))]
    if errors := _errors(snapshot):
        lines.append(Text(errors, style="red"))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(top, *lines)


def _place(snapshot: Snapshot) -> str:
    return f"{_time(snapshot)}, {_printable(snapshot.phase)}"


def _time(snapshot: Snapshot) -> str:
    # The last answers may come after the end.
    elapsed_s = min(max(snapshot.elapsed_s, 0), snapshot.total_s)
    return f"{elapsed_s:,.0f} of {snapshot.total_s:,.0f} s"


def _numbers(snapshot: Snapshot, between: str) -> str:
    parts = [
        f"sent {_rate(snapshot.sent_per_s)}",
        f"right {_rate(snapshot.goodput_per_s)}",
        f"p50 {_ms(snapshot.p50_ms)}",
        f"p99 {_ms(snapshot.p99_ms)}",
        f"in flight {snapshot.in_flight:,}",
    ]
    return between.join(parts)


def _errors(snapshot: Snapshot) -> str:
    counts = [f"{_printable(code)} {n:,}" for code, n in snapshot.errors.items()]
    return f"errors: {', '.join(counts)}" if counts else ""


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}/s" if per_s >= 100 else f"{per_s:.1f}/s"


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _printable(text: str) -> str:
    # Codes come from the server, which could move the cursor or worse.
    return "".join(character if character.isprintable() else "?" for character in text)

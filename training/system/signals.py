"""Lets a run end at the next step, with a checkpoint, when it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar, Final, NoReturn

from training.errors import TrainingError

STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


class Interrupted(TrainingError):
    """SIGINT (Ctrl-C) ended the run after a checkpoint."""

    code = "interrupted"
    exit_code: ClassVar[int] = 128 + signal.SIGINT


class Terminated(Interrupted):
    """SIGTERM ended the run after a checkpoint."""

    code = "terminated"
    exit_code: ClassVar[int] = 128 + signal.SIGTERM


class StopFlag:
    """Remembers the signal that asked the run to stop; 0 while there was none."""

    def __init__(self) -> None:
        self.signal = 0

    def counts(self) -> tuple[int, int]:
        """(1, 0) after SIGTERM, (0, 1) after SIGINT, (0, 0) before; processes add theirs up."""
        return int(self.signal == signal.SIGTERM), int(self.signal == signal.SIGINT)


def raise_for(counts: Sequence[float], message: str) -> NoReturn:
    """Raises the error of a signal.

    Args:
        counts: processes that received SIGTERM, and SIGINT.
        message: where the checkpoint is and how to go on.

    Raises:
        Terminated: one received SIGTERM.
        Interrupted: it was SIGINT.
    """
    raise (Terminated if counts[0] else Interrupted)(message)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turns SIGTERM and the first SIGINT into a flag; a second SIGINT ends the process at once.

    The former handlers come back at the end. Outside of the main thread, where Python cannot set
    handlers, the flag is never raised.
    """
    flag = StopFlag()

    def note(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and flag.signal == signal.SIGINT:
            raise KeyboardInterrupt
        flag.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    former = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield flag
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)

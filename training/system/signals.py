"""Stops a run on SIGTERM or SIGINT after its current step, with a checkpoint."""

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
    """The signal that asked the run to stop, or 0."""

    def __init__(self) -> None:
        self.signal = 0

    def counts(self) -> tuple[int, int]:
        # (SIGTERM, SIGINT) as 0 or 1: processes add theirs, so that all of them stop together.
        return int(self.signal == signal.SIGTERM), int(self.signal == signal.SIGINT)


def raise_for(counts: Sequence[float], message: str) -> NoReturn:
    """Raises Terminated if a process received SIGTERM, otherwise Interrupted.

    Args:
        counts: how many processes received SIGTERM, and SIGINT.
        message: where the checkpoint is and how to resume.
    """
    raise (Terminated if counts[0] else Interrupted)(message)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turns SIGTERM and the first SIGINT into a flag; a second SIGINT stops the process at once.

    Restores the previous handlers at the end. Does nothing outside the main thread, where Python
    cannot set handlers.
    """
    flag = StopFlag()

    def note(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and flag.signal == signal.SIGINT:
            raise KeyboardInterrupt
        flag.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    previous = {number: signal.signal(number, note) for number in STOPPING}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

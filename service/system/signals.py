"""Handles SIGTERM, SIGINT and SIGHUP on a separate thread.

The main thread can be inside native code for seconds, and a Python signal handler would have to wait
for it. So every thread blocks the signals, and one thread waits for them. Early signals stay pending,
even for PID 1 of a container, where the kernel ignores signals without a handler.

Child processes inherit the block, so a signal to the process group does not end them. Must import
little, and only from the standard library: the entry point imports this module first.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, cast

_STOPS: Final = (signal.SIGTERM, signal.SIGINT)
_TAKEN: Final = (*_STOPS, signal.SIGHUP)
_SECOND_STOP_S: Final = 1.0  # time for the event loop to exit after the second signal


class SignalHandlers:
    """What SIGTERM, SIGINT and SIGHUP do after `install`.

    Outside of `handled`, SIGTERM and SIGINT end the process immediately with status 0, even inside
    native code. A SIGHUP waits until `handled` begins.

    Attributes:
        before_exit: called with the signal before the process is ended that way, on the thread
            that waits for signals.
    """

    def __init__(self) -> None:
        self.before_exit: Callable[[signal.Signals], object] = lambda _: None
        self._on_stop: Callable[[signal.Signals], object] | None = None
        self._on_hangup: Callable[[], object] | None = None
        self._hangup_waits = False
        self._stops = 0

    def install(self) -> None:
        """Blocks the signals and starts the thread. Call it before other threads start."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
        thread = threading.Thread(target=self._wait, name="signals", daemon=True)
        thread.start()

        # Older threads, such as a profiler's, do not block the signals and pass them on.
        waiting = cast(int, thread.ident)
        for number in _TAKEN:
            signal.signal(number, lambda number, _: signal.pthread_kill(waiting, number))

    @contextmanager
    def handled(
        self, on_stop: Callable[[signal.Signals], object], on_hangup: Callable[[], object]
    ) -> Iterator[None]:
        """Calls these functions on the thread that waits for signals, until the block ends.

        Args:
            on_stop: called for SIGTERM and SIGINT. The process ends immediately if it raises
                RuntimeError, as a closed event loop does, or 1 s after the second signal.
            on_hangup: called for SIGHUP.
        """
        self._on_stop, self._on_hangup = on_stop, on_hangup
        self._hang_up()
        try:
            yield
        finally:
            self._on_stop = self._on_hangup = None

    def _wait(self) -> None:
        while True:
            number = signal.Signals(signal.sigwait(_TAKEN))
            if number in _STOPS:
                self._stop(number)
            else:
                self._hangup_waits = True
                self._hang_up()

    def _hang_up(self) -> None:
        # On two threads at once it calls the function twice at worst, never not at all.
        if self._hangup_waits and (on_hangup := self._on_hangup) is not None:
            self._hangup_waits = False
            with suppress(RuntimeError):  # the event loop was just closed
                on_hangup()

    def _stop(self, number: signal.Signals) -> None:
        self._stops += 1
        with suppress(RuntimeError):  # as above
            if (on_stop := self._on_stop) is not None:
                on_stop(number)
                if self._stops == 1:
                    return
                # After the second signal the event loop gets a moment. A third one ends the wait.
                signal.sigtimedwait(_STOPS, _SECOND_STOP_S)
        try:
            self.before_exit(number)
        finally:
            os._exit(0)

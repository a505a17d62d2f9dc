"""Takes the signals that end or nudge the process, on a thread that waits for nothing else.

The main thread may be inside native code for seconds, where a handler of Python's would have to wait.
So the signals are blocked in every thread, and one waits for them. Nothing is lost: what comes before
somebody waits stays pending, also where the process is PID 1 of a container, whose signals the system
ignores while they have no handler.

Child processes inherit the block. That keeps a signal to the whole group from ending them; a child
that has a use for one unblocks it. Only the standard library is imported here, and little of it: this
is the first thing that the entry point does.
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
_NOW_S: Final = 1.0
"""How long the event loop may take to end everything after the second signal."""


class SignalHandlers:
    """What SIGTERM, SIGINT and SIGHUP do once they are taken.

    Unless something else is `handled`, SIGTERM and SIGINT end the process at once, with 0, whatever
    native code is going on in it, and SIGHUP is ignored.

    Attributes:
        before_exit: called with the signal before the process is ended in that way, on the thread
            that waits for signals.
    """

    def __init__(self) -> None:
        self.before_exit: Callable[[signal.Signals], object] = lambda _: None
        self._on_stop: Callable[[signal.Signals], object] | None = None
        self._on_hangup: Callable[[], object] | None = None
        self._stops = 0

    def take(self) -> None:
        """Begins; on the main thread, before it starts others."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
        thread = threading.Thread(target=self._wait, name="signals", daemon=True)
        thread.start()

        # For threads that were there before, such as a profiler's: they block nothing.
        waiting = cast(int, thread.ident)
        for number in _TAKEN:
            signal.signal(number, lambda number, _: signal.pthread_kill(waiting, number))

    @contextmanager
    def handled(
        self, on_stop: Callable[[signal.Signals], object], on_hangup: Callable[[], object]
    ) -> Iterator[None]:
        """Calls these, on the thread that waits for signals, until the block is left.

        Args:
            on_stop: told of SIGTERM and SIGINT. If it raises RuntimeError, as a closed event loop does,
                or if the process is still there a second after the second of them, the process is
                ended at once.
            on_hangup: told of SIGHUP.
        """
        self._on_stop, self._on_hangup = on_stop, on_hangup
        try:
            yield
        finally:
            self._on_stop = self._on_hangup = None

    def _wait(self) -> None:
        while True:
            number = signal.Signals(signal.sigwait(_TAKEN))
            if number in _STOPS:
                self._stop(number)
            elif (on_hangup := self._on_hangup) is not None:
                with suppress(RuntimeError):  # the event loop has just been closed
                    on_hangup()

    def _stop(self, number: signal.Signals) -> None:
        self._stops += 1
        with suppress(RuntimeError):  # as above
            if (on_stop := self._on_stop) is not None:
                on_stop(number)
                if self._stops == 1:
                    return
                signal.sigtimedwait(_STOPS, _NOW_S)
        try:
            self.before_exit(number)
        finally:
            os._exit(0)

"""A thread that runs calls in order and never delays the exit of the process.

`concurrent.futures` joins its threads when the interpreter exits, so a native run that hangs would
also block the exit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

Result = TypeVar("Result")


class DaemonThread:
    """Runs submitted calls in order on one daemon thread.

    Attributes:
        busy: a call is running, even if its caller has stopped waiting.
    """

    def __init__(self, name: str) -> None:
        self.busy = False
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def post(self, call: Callable[[], None]) -> None:
        """Queues a call that must not raise."""
        self._calls.put(call)

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        """Queues a call and returns the future of its result."""
        future: Future[Result] = Future()
        self.post(partial(_fulfil, future, call))
        return future

    def close(self) -> None:
        """Ends the thread after the queued calls. Does not wait."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self.busy = True
            try:
                call()
            finally:
                self.busy = False
                del call  # else its arguments and its result stay until the next call


def _fulfil(future: Future[Result], call: Callable[[], Result]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except BaseException as error:  # noqa: BLE001 - passed to the caller
        future.set_exception(error)
        del future, call  # the error's traceback refers to this frame: a cycle

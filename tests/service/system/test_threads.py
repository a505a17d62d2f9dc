from __future__ import annotations

import threading
import weakref
from functools import partial

import pytest

from service.system.threads import DaemonThread
from tests.waiting import wait_until


def test_thread_runs_calls_in_order():
    thread, order = DaemonThread("t"), list[int]()
    futures = [thread.submit(partial(order.append, number)) for number in range(5)]

    for future in futures:
        future.result(5)

    assert order == [0, 1, 2, 3, 4]


def test_thread_is_a_daemon_with_its_name():
    current = DaemonThread("lane-7").submit(threading.current_thread).result(5)

    assert (current.name, current.daemon) == ("lane-7", True)


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), KeyboardInterrupt()])
def test_thread_call_that_raises_fails_its_future_and_the_thread_continues(error):
    thread = DaemonThread("t")

    def fail() -> None:
        raise error

    assert thread.submit(fail).exception(5) is error
    assert thread.submit(lambda: 1).result(5) == 1


def test_thread_call_cancelled_before_its_turn_never_runs():
    thread, gate, ran = DaemonThread("t"), threading.Event(), []
    thread.submit(gate.wait)
    cancelled = thread.submit(lambda: ran.append(1))
    cancelled.cancel()
    gate.set()

    thread.submit(lambda: None).result(5)

    assert ran == []


def test_thread_that_waits_keeps_neither_its_last_call_nor_the_result():
    thread, argument = DaemonThread("t"), {1}
    call = partial(set.copy, argument)
    references = [weakref.ref(one) for one in (call, argument)]

    references.append(weakref.ref(thread.submit(call).result(5)))
    del call, argument

    # It forgets them after the future is done.
    wait_until(lambda: all(one() is None for one in references))


@pytest.mark.usefixtures("no_collections")
def test_thread_call_that_raises_leaves_no_cycle():
    thread, argument = DaemonThread("t"), {1}
    of_argument = weakref.ref(argument)

    def fail(_: object) -> None:
        raise ValueError("x")

    thread.submit(partial(fail, argument)).exception(5)
    del argument
    thread.submit(lambda: None).result(5)

    assert of_argument() is None


def test_thread_closed_ends_after_the_queued_calls():
    thread = DaemonThread("t")
    future = thread.submit(lambda: 1)

    thread.close()
    thread._thread.join(30)

    assert (future.result(0), thread._thread.is_alive()) == (1, False)


def test_thread_is_busy_during_a_call_and_not_after():
    entered, leave = threading.Event(), threading.Event()
    thread = DaemonThread("test")

    def call() -> bool:
        entered.set()
        return leave.wait(20)

    future = thread.submit(call)
    assert entered.wait(20)
    during = thread.busy

    leave.set()
    future.result(20)
    after = thread.submit(lambda: None)
    after.result(20)
    thread.close()
    thread._thread.join(20)

    assert (during, thread.busy) == (True, False)

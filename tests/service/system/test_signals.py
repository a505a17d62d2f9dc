"""Signal handling, tested in separate processes because pytest handles its own signals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 20
START = """
import ctypes, os, signal, subprocess, sys, threading
from service.system.signals import SignalHandlers

signals = SignalHandlers()

def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)

def say(*words):
    os.write(1, f"{' '.join(map(str, words))}\\n".encode())

def native():
    while True:
        ctypes.CDLL(None).sleep(60)

def before_exit(number):
    say("exits for", number.name)
"""


def run(code: str) -> tuple[int, str]:
    """Runs code with `START` before it; returns the exit status and what it printed."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", START + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_installed_end_the_process_inside_native_code_with_status_zero(name):
    assert run(f"signals.install(); send(signal.{name}); native()") == (0, "")


def test_signals_pending_before_installation_are_not_lost():
    code = """
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
send(signal.SIGTERM)
signals.install()
native()
"""
    assert run(code) == (0, "")


def test_signals_call_before_exit():
    code = "signals.before_exit = before_exit; signals.install(); send(signal.SIGINT); native()"

    assert run(code) == (0, "exits for SIGINT\n")


def test_signals_hangup_that_is_not_handled_does_not_end_the_process():
    code = "signals.before_exit = before_exit; signals.install(); send(signal.SIGHUP, signal.SIGTERM); native()"

    assert run(code) == (0, "exits for SIGTERM\n")


def test_signals_hangup_before_the_handlers_is_handled_later_and_once():
    code = """
signals.install()
send(signal.SIGHUP)
called = threading.Event()
with signals.handled(lambda _: None, called.set):
    called.wait()
    say("hangup")
with signals.handled(lambda _: None, lambda: say("hangup again")):
    pass
"""
    assert run(code) == (0, "hangup\n")


def test_signals_handlers_run_on_another_thread():
    code = """
called, main = threading.Event(), threading.get_ident()

def on_stop(number):
    say(number.name, threading.get_ident() != main)
    called.set()

signals.before_exit = before_exit
signals.install()
with signals.handled(on_stop, lambda: say("hangup")):
    send(signal.SIGHUP, signal.SIGTERM)
    called.wait()
say("stopped")
"""
    assert run(code) == (0, "hangup\nSIGTERM True\nstopped\n")


def test_signals_second_one_ends_the_process_if_the_handler_does_not():
    code = """
signals.before_exit = before_exit
signals.install()
with signals.handled(lambda number: say(number.name), lambda: None):
    send(signal.SIGTERM, signal.SIGINT)
    native()
"""
    status, said = run(code)

    assert status == 0
    assert sorted(said.splitlines()[:2]) == ["SIGINT", "SIGTERM"]  # pending ones have no order
    assert said.splitlines()[2].startswith("exits for ")


def test_signals_handler_that_raises_ends_the_process():
    code = """
def on_stop(number):
    raise RuntimeError("the event loop is closed")

signals.before_exit = before_exit
signals.install()
with signals.handled(on_stop, lambda: None):
    send(signal.SIGTERM)
    native()
"""
    assert run(code) == (0, "exits for SIGTERM\n")


def test_signals_no_longer_handled_end_the_process():
    code = """
signals.before_exit = before_exit
signals.install()
with signals.handled(lambda _: say("handled"), lambda: say("hangup")):
    pass
send(signal.SIGHUP, signal.SIGTERM)
native()
"""
    assert run(code) == (0, "exits for SIGTERM\n")


def test_signals_before_exit_that_raises_does_not_prevent_the_exit():
    code = "signals.before_exit = lambda _: sys.exit(4); signals.install(); send(signal.SIGTERM); native()"

    assert run(code) == (0, "")


def test_signals_are_handled_despite_a_thread_started_earlier():
    code = """
threading.Thread(target=threading.Event().wait, daemon=True).start()
signals.before_exit = before_exit
signals.install()
send(signal.SIGTERM)
while True:
    threading.Event().wait(0.01)
"""
    assert run(code) == (0, "exits for SIGTERM\n")


def test_signals_are_blocked_in_a_child_which_can_unblock_them():
    code = """
signals.install()
child = "import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('lives', flush=True);"
child += "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM]); print('not reached')"
done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
say(done.returncode, done.stdout.strip())
"""
    assert run(code) == (0, "-15 lives\n")

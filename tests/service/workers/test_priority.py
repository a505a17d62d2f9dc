from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from service.workers import priority
from service.workers.priority import ProcessorShare, run_nicer, run_when_idle
from tests.fakes import FakeClock

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def child() -> Iterator[int]:
    with subprocess.Popen(SLEEP) as process:  # noqa: S603 - our own interpreter
        yield process.pid
        process.kill()


def test_nicer_child_has_ten_more_than_the_service(child, monkeypatch):
    monkeypatch.setattr("os.getpriority", lambda *_: 5)
    run_nicer(child)
    monkeypatch.undo()

    assert os.getpriority(os.PRIO_PROCESS, child) == 15


def test_nicer_child_that_has_ended_is_no_error():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        status = ended.wait()
        run_nicer(ended.pid)

    assert status == 0


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="needs Linux")
def test_idle_child_is_scheduled_as_idle(child):
    assert run_when_idle(child)
    assert os.sched_getscheduler(child) == os.SCHED_IDLE


@pytest.mark.parametrize("error", [PermissionError, AttributeError])
def test_idle_scheduling_that_is_missing_or_forbidden_is_said(monkeypatch, error):
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)

    assert not run_when_idle(os.getpid())


@pytest.mark.parametrize(
    ("elapsed_s", "cpu_s", "starving"),
    [(4.9, 0.0, False), (5.0, 1.2, True), (5.0, 1.3, False), (100.0, 24.0, True)],
)
def test_share_is_judged_after_a_while(monkeypatch, elapsed_s, cpu_s, starving):
    clock = FakeClock()
    share = ProcessorShare(1, clock)
    monkeypatch.setattr(priority, "cpu_seconds", lambda _: cpu_s)

    clock.advance(elapsed_s)

    assert share.is_starving() is starving


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_share_of_a_stopped_process_is_none(child):
    clock = FakeClock()
    share = ProcessorShare(child, clock)
    os.kill(child, signal.SIGSTOP)

    clock.advance(60)

    assert share.is_starving()

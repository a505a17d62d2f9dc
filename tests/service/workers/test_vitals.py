from __future__ import annotations

import math

import pytest

from service.workers.vitals import (
    DOUBT_S,
    EXCUSE_S,
    OVERDUE_S,
    PING_S,
    Reason,
    Tolerance,
    Vitals,
)
from service.workers.wire import Pong

HEALTHY = Pong(alive=True, resident_bytes=1000)
NEVER = math.inf


def pinged(tolerance: Tolerance | None = None) -> Vitals:
    """Vitals of a worker that was sent a ping at 0 s."""
    vitals = Vitals(tolerance or Tolerance(), -PING_S)
    assert vitals.next_ping(0.0) == 1
    return vitals


def test_vitals_ping_is_due_at_intervals_and_one_at_a_time():
    vitals = Vitals(Tolerance(), 0.0)

    due = [vitals.next_ping(PING_S / 2), vitals.next_ping(PING_S), vitals.next_ping(100.0)]
    vitals.heard(1, HEALTHY)

    assert (due, vitals.next_ping(100.0)) == ([None, 1, None], 2)


def test_vitals_silence_is_noticed_within_a_second():
    assert PING_S + DOUBT_S < 1.0


def test_vitals_silent_worker_is_doubtful_then_replaced():
    vitals = pinged(Tolerance(silent_s=5))

    doubtful = [vitals.doubtful(now_s) for now_s in (DOUBT_S, DOUBT_S + 0.01)]
    verdicts = [vitals.verdict(now_s, NEVER) for now_s in (5.0, 5.01)]

    assert (doubtful, verdicts) == ([False, True], [None, Reason.SILENT])


def test_vitals_answer_ends_the_doubt():
    vitals = pinged()

    vitals.heard(1, HEALTHY)

    assert not vitals.doubtful(100.0)
    assert vitals.verdict(100.0, NEVER) is None
    assert vitals.resident_bytes == 1000


def test_vitals_answer_to_another_ping_changes_nothing():
    vitals = pinged()

    vitals.heard(0, HEALTHY)

    assert vitals.doubtful(DOUBT_S + 0.01)


def test_vitals_reply_owed_after_its_deadline_is_overdue():
    vitals = Vitals(Tolerance(), 0.0)

    verdicts = [vitals.verdict(10.0 + after_s, 10.0) for after_s in (OVERDUE_S, OVERDUE_S + 0.01)]

    assert verdicts == [None, Reason.OVERDUE]


def test_vitals_reply_is_due_at_its_deadline_or_when_replies_usually_are():
    vitals = Vitals(Tolerance(), 0.0, usual_s=3.0)

    due_s = [vitals.due_s(10.0, 10.5), vitals.due_s(10.0, 100.0)]
    for took_s in (0.1, 0.2, 0.1):
        vitals.replied(took_s)
    due_s.append(vitals.due_s(10.0, 10.0))

    assert due_s == [16.0, 100.0, 10.4]


def test_vitals_front_that_was_held_up_blames_nobody():
    vitals = pinged(Tolerance(silent_s=5))

    vitals.excuse(60.0)

    assert not vitals.doubtful(60.0)
    assert vitals.verdict(60.0 + EXCUSE_S / 2, 10.0) is None
    assert vitals.verdict(60.0 + EXCUSE_S, 10.0) is Reason.OVERDUE
    assert vitals.verdict(65.01, NEVER) is Reason.SILENT


def test_vitals_worker_with_a_lane_that_is_dead_gets_nothing_and_is_replaced():
    vitals = pinged()

    vitals.heard(1, Pong(alive=False, resident_bytes=1000))

    assert vitals.doubtful(0.1)
    assert vitals.verdict(0.1, NEVER) is Reason.LANES


@pytest.mark.parametrize(
    ("limit", "verdict"),
    [(None, None), (1000, None), (999, Reason.MEMORY)],
    ids=["unlimited", "at_limit", "above"],
)
def test_vitals_memory_above_its_limit_is_a_reason(limit, verdict):
    vitals = pinged(Tolerance(max_memory_bytes=limit))

    vitals.heard(1, HEALTHY)

    assert vitals.verdict(0.1, NEVER) is verdict
    assert not vitals.doubtful(0.1), "it works well until its replacement is there"


@pytest.mark.parametrize("reason", Reason)
def test_vitals_only_a_worker_that_responds_can_wait(reason):
    waits = {Reason.LANES, Reason.MEMORY, Reason.TERMINATED}

    assert reason.can_wait == (reason in waits)

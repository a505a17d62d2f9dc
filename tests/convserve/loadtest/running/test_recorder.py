from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from convserve.loadtest.running.recorder import AnswerCheck, Recorder, Window, max_lag_ms
from convserve.loadtest.sending.rows import (
    BROKEN,
    MAX_STAGES,
    NONE,
    PACKER,
    UNANSWERED,
    WITH_BROKEN_PICTURE,
    Rows,
    read_rows,
)
from convserve.loadtest.sending.sender import Counts


@dataclass
class FakeFleet:
    """Texts that rows refer to, and what senders say about themselves."""

    answers: list[tuple[str, ...]] = field(default_factory=lambda: [("red",), ("blue",)])
    ends: list[tuple[str, int, str]] = field(
        default_factory=lambda: [
            ("overloaded", 503, "busy"),
            ("timeout", UNANSWERED, "no answer"),
            ("image_truncated", 422, "cut"),
            ("interrupted", UNANSWERED, "ended early"),
            ("connection_lost", BROKEN, "reset"),
        ]
    )
    stages: list[str] = field(default_factory=lambda: ["queue", "infer"])
    counts: list[Counts] = field(default_factory=lambda: [Counts()])


OVERLOADED, TIMEOUT, TRUNCATED, INTERRUPTED, LOST = range(5)


def rows(*requests: dict[str, Any]) -> Rows:
    data = bytearray()
    for one in requests:
        at_s = one.get("at_s", 0.0)
        data += PACKER.pack(
            at_s,
            at_s,
            at_s + one.get("latency_s", 0.01),
            one.get("lag_s", 0.0),
            one.get("status", 200),
            one.get("flags", 0),
            one.get("item", 0),
            one.get("answer", 0 if one.get("status", 200) == 200 else NONE),
            one.get("end", NONE),
            *one.get("stages", [math.nan] * MAX_STAGES),
        )
    return read_rows(data)


@pytest.fixture
def recorder() -> Recorder:
    check = AnswerCheck([["red.png"], ["blue.png"]], [[""]], {"blue.png": "blue"})
    window = Window(warmup_s=1.0, seconds=4.0, interval_s=1.0, targets=[(5.0, 10.0)])
    return Recorder(FakeFleet(), check, window)  # type: ignore[arg-type]


def test_recorder_leaves_out_the_warm_up(recorder):
    recorder.add(rows({"at_s": 0.9}, {"at_s": 1.0}, {"at_s": 2.5}))

    assert recorder.whole.n_sent == 2
    assert recorder.whole.n_ok == 2


def test_recorder_request_still_open_at_an_early_end_was_not_answered(recorder):
    recorder.add(rows({"at_s": 2.6, "status": UNANSWERED, "end": INTERRUPTED}))

    assert recorder.whole.n_errors == 1
    assert recorder.whole.latencies.n_unanswered == 1


def test_recorder_counts_each_end_once_and_keeps_refusals_out_of_the_latencies(recorder):
    recorder.add(
        rows(
            {"at_s": 1.0, "latency_s": 0.2},
            {"at_s": 1.1, "status": 503, "end": OVERLOADED, "latency_s": 0.001},
            {"at_s": 1.2, "status": UNANSWERED, "end": TIMEOUT},
            {"at_s": 1.3, "status": BROKEN, "end": LOST},
        )
    )

    whole = recorder.whole
    assert (whole.n_sent, whole.n_ok, whole.n_refused, whole.n_errors) == (4, 1, 1, 3)
    assert whole.latencies.n == 3
    assert whole.latencies.n_unanswered == 2
    assert whole.latencies.percentile_ms(33) == pytest.approx(200, rel=0.01)
    assert whole.latencies.percentile_ms(50) is None
    assert {(error.code, error.status) for error in recorder.errors()} == {
        ("overloaded", 503),
        ("timeout", None),
        ("connection_lost", None),
    }


@pytest.mark.parametrize(
    ("status", "end", "n_errors", "n_accepted"),
    [(422, TRUNCATED, 0, 0), (200, NONE, 1, 1), (503, OVERLOADED, 1, 0), (BROKEN, LOST, 1, 0)],
    ids=["refused", "accepted", "overloaded", "lost"],
)
def test_recorder_broken_picture_is_right_only_if_it_was_refused(
    recorder, status, end, n_errors, n_accepted
):
    recorder.add(rows({"at_s": 1.0, "status": status, "flags": WITH_BROKEN_PICTURE, "end": end}))

    assert recorder.whole.n_errors == n_errors
    assert recorder.whole.n_ok == 0
    assert recorder.whole.latencies.n == 0
    assert (recorder.n_broken, recorder.n_broken_accepted) == (1, n_accepted)


def test_recorder_answer_that_changes_is_wrong(recorder):
    recorder.add(rows({"at_s": 1.0}, {"at_s": 1.1}))
    recorder.add(rows({"at_s": 1.2, "answer": 1}))

    assert recorder.whole.n_ok == 2
    assert [(error.code, error.n) for error in recorder.errors()] == [("wrong_answer", 1)]


def test_recorder_answer_that_is_not_expected_is_wrong_from_the_first(recorder):
    recorder.add(rows({"at_s": 1.0, "item": 1, "answer": 0}))

    assert recorder.whole.n_errors == 1


def test_recorder_intervals_cover_the_measured_time_and_sum_up(recorder):
    recorder.add(rows({"at_s": 1.5}, {"at_s": 3.2}, {"at_s": 3.4}, {"at_s": 4.99}))

    recorder.close_before(3.0)
    n_closed_early = len(recorder.intervals)
    recorder.close_before(math.inf)

    assert n_closed_early == 2
    assert [part.n_sent for part in recorder.intervals] == [1, 0, 2, 1]
    assert [part.start_s for part in recorder.intervals] == [0, 1, 2, 3]
    assert {part.target_per_s for part in recorder.intervals} == {10.0}


def test_recorder_run_that_was_cut_measures_only_its_time(recorder):
    recorder.add(rows({"at_s": 1.5}, {"at_s": 2.2}))

    recorder.cut(2.5)
    recorder.close_before(math.inf)

    assert recorder.stretch("run", None).seconds == pytest.approx(1.5)
    assert [part.seconds for part in recorder.intervals] == pytest.approx([1.0, 0.5])


def test_recorder_stages_are_summed_up_by_name(recorder):
    absent = [math.nan] * (MAX_STAGES - 2)
    recorder.add(
        rows(
            {"at_s": 1.0, "stages": [2.0, 10.0, *absent]},
            {"at_s": 1.1, "stages": [4.0, math.nan, *absent]},
        )
    )

    assert [(one.name, one.n, round(one.mean_ms, 2)) for one in recorder.stages()] == [
        ("queue", 2, 3.0),
        ("infer", 1, 10.0),
    ]


def test_recorder_lag_is_the_senders_own(recorder):
    recorder.add(rows({"at_s": 1.0, "lag_s": 0.02, "latency_s": 0.03}))

    assert recorder.sender().lag_p99_ms == pytest.approx(20, rel=0.01)


def test_answer_check_several_pictures_need_each_of_them_right():
    check = AnswerCheck([["a", "b"]], [["", "b"]], {})

    assert check.right(("red", "blue"), 0, 1, broken=False)
    assert not check.right(("red", "green"), 0, 1, broken=False)
    assert not check.right(("red", "!image_truncated"), 0, 1, broken=False)
    assert check.right(("!image_truncated", "blue"), 0, 1, broken=True)
    assert not check.right(("!image_truncated", "green"), 0, 1, broken=True)
    assert not check.right(("red", "blue"), 0, 1, broken=True)
    assert check.n_changed == 2


@pytest.mark.parametrize(
    ("p99_ms", "ramp", "limit_ms"),
    [(190.0, False, 5.0), (190.0, True, 19.0), (20.0, True, 5.0), (None, True, math.inf)],
    ids=["steady", "ramp-at-capacity", "ramp-far-below", "ramp-not-answered"],
)
def test_max_lag_grows_with_the_latency_in_a_ramp_only(p99_ms, ramp, limit_ms):
    assert max_lag_ms(p99_ms, ramp=ramp) == pytest.approx(limit_ms)

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from convserve.loadtest.histogram import Latencies
from convserve.loadtest.results import Stretch
from convserve.loadtest.running.objective import DEFAULT, parse_objective
from convserve.loadtest.running.profiles import Findings, Rates, drift, ramp, recovery
from convserve.loadtest.running.recorder import Recorder
from convserve.loadtest.running.trial import Course, Outcome, Runner
from convserve.loadtest.sending.plan import Plan, Target
from tests.convserve.loadtest import samples


def second(at_s: float, p99_ms: float, n_errors: int = 0) -> Stretch:
    latencies = Latencies()
    latencies.add(np.full(100, p99_ms / 1e3))
    return Stretch(
        name=f"{at_s} s",
        start_s=at_s,
        seconds=1.0,
        target_per_s=None,
        sent_per_s=100.0,
        goodput_per_s=100.0,
        n_sent=100,
        n_ok=100 - n_errors,
        n_refused=0,
        n_errors=n_errors,
        latency=latencies.summary(),
    )


def seconds(*p99_ms: float) -> list[Stretch]:
    return [second(float(at_s), one) for at_s, one in enumerate(p99_ms)]


def test_recovery_is_when_it_is_as_fast_as_before_the_spike():
    found = recovery(seconds(10, 12, 11, 300, 400, 500, 200, 100, 12), third_s=3)

    assert found.recovered_after_s == 2
    assert found.before_p99_ms == pytest.approx(12, rel=0.01)
    assert found.during_p99_ms == pytest.approx(500, rel=0.01)


def test_recovery_that_never_came_is_none():
    found = recovery(seconds(10, 12, 11, 300, 400, 500, 200, 100, 50), third_s=3)

    assert found.recovered_after_s is None


def test_recovery_needs_an_interval_without_errors():
    parts = seconds(10, 12, 11, 300, 400, 500, 10, 10, 10)
    parts[6] = second(6.0, 10, n_errors=1)

    assert recovery(parts, third_s=3).recovered_after_s == 1


def test_recovery_of_a_run_that_was_cut_is_none():
    assert recovery([], third_s=3).recovered_after_s is None


def test_drift_compares_the_ends():
    parts = seconds(*[10.0] * 10, *[15.0] * 80, *[20.0] * 10)
    memory = [(float(at_s), 100.0 + at_s) for at_s in range(0, 101, 10)]

    found = drift(parts, memory)

    assert found.p50_ratio == pytest.approx(2, rel=0.01)
    assert found.memory_ratio == pytest.approx(2, rel=0.01)


class FakeRunner:
    """Each trial keeps its objective up to `limit_per_s`; the last one is cut short."""

    def __init__(self, limit_per_s: float, n_trials: int, failure: str | None = None) -> None:
        self.objective = parse_objective(DEFAULT)
        self.progress = SimpleNamespace(say=lambda _: None)
        self.failure: str | None = None
        self._limit_per_s, self._left, self._why = limit_per_s, n_trials, failure

    def was_stopped(self) -> bool:
        return self._left == 0

    def run(self, course: Course) -> Outcome:
        self._left -= 1
        if self.was_stopped():
            self.failure = self._why
        [(_, rate_per_s)] = course.plan.phases or []
        slow = rate_per_s > self._limit_per_s
        fields = samples.stretch(course.name, 0.0, 10.0, np.full(round(10 * rate_per_s), 0.01))
        fields["target_per_s"] = rate_per_s
        trial = samples.trial(fields, ["p99<200ms: p99 was 300.0 ms"] if slow else [])
        return Outcome(trial, cast("Recorder", None))


def search_with(runner: FakeRunner) -> Findings:
    plan = Plan(Target("127.0.0.1", 1), "requests", [], [])
    return ramp(cast("Runner", runner), plan, Rates(10.0, 2.0, rate_per_s=100.0))


def test_ramp_trial_that_was_cut_short_is_no_result():
    found = search_with(FakeRunner(120.0, n_trials=3))

    assert [one.trial.target_per_s for one in found.outcomes] == [100.0, 115.0]
    assert found.capacity is not None
    assert found.capacity.rate_per_s == 115
    assert found.capacity.statement.endswith("The search ended early.")
    assert found.invalid_because == []


def test_ramp_cut_short_in_its_first_trial_is_not_valid():
    found = search_with(FakeRunner(120.0, n_trials=1))

    assert (found.outcomes, found.chosen, found.capacity) == ([], None, None)
    assert found.invalid_because == ["it ended before its first trial was complete"]


def test_ramp_shows_what_was_seen_before_a_sender_failed():
    found = search_with(FakeRunner(120.0, n_trials=1, failure="a sender ended early"))

    assert found.chosen is not None
    assert found.capacity is None

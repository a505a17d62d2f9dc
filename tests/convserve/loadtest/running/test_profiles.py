from __future__ import annotations

import numpy as np
import pytest

from convserve.loadtest.histogram import Latencies
from convserve.loadtest.results import Stretch
from convserve.loadtest.running.profiles import drift, recovery


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

from __future__ import annotations

import pytest

from convserve.loadtest.report import summary_of
from convserve.loadtest.results import Recovery
from tests.convserve.loadtest import samples


@pytest.mark.parametrize(
    ("after_s", "line"),
    [
        (
            2.0,
            "recovery: 2 s after the spike's end; p99 31.0 ms before the spike, not answered in it",
        ),
        (None, "recovery: not seen; p99 31.0 ms before the spike, not answered in it"),
    ],
    ids=["recovered", "never"],
)
def test_summary_of_a_spike_says_how_long_recovery_took(after_s, line):
    recovery = Recovery(before_p99_ms=31.0, during_p99_ms=None, recovered_after_s=after_s)

    lines = summary_of(samples.steady_good().model_copy(update={"recovery": recovery}))

    assert line in lines


def test_summary_of_a_soak_says_what_drifted():
    lines = summary_of(samples.soak(n_intervals=10))

    line = "drift, last tenth against the first: p50 x 1.02, p99 not known, memory x 1.21"
    assert line in lines


def test_summary_of_another_profile_has_neither():
    text = "\n".join(summary_of(samples.steady_good()))

    assert "objective met" in text
    assert "recovery" not in text
    assert "drift" not in text

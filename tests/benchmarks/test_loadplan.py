from __future__ import annotations

import pytest

from benchmarks.loadplan import Outcome, Plan, from_json, parse_answer, send_times, to_json
from benchmarks.measures import Row


def test_send_times_seeded_gaps_repeat_and_keep_the_rate():
    plan = Plan(1, [], seconds=100, rate_per_s=50, seed=3)

    times = send_times(plan)

    assert times == send_times(plan)
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert times == sorted(times)
    assert times[-1] < 100


def test_send_times_even_gaps_are_even():
    plan = Plan(1, [], seconds=1, rate_per_s=4, poisson=False)

    assert send_times(plan) == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 No\r\nContent-Length: 4\r\nRetry-After: 1\r\n\r\nbusy",
        b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbu\r\n2\r\nsy\r\n0\r\n\r\n",
    ],
    ids=["length", "chunked"],
)
def test_parse_answer_complete_only_at_its_end(answer):
    assert all(parse_answer(answer[:end]) is None for end in range(len(answer)))

    parsed = parse_answer(answer)

    assert parsed is not None
    assert (parsed[0], parsed[2]) == (503, b"busy")


def test_outcome_json_round_trip():
    outcome = Outcome([Row(False, 0.0, 0.1, 0.2, 200, True)], {3: "{}"}, 0.5, 1.0)

    assert from_json(to_json(outcome) | {"bodies": {"3": "{}"}}) == outcome

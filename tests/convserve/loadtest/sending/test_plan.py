from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from convserve.loadtest.sending.plan import (
    Plan,
    Requests,
    Target,
    from_json,
    send_times,
    write_requests,
)

PLAN = Plan(Target("127.0.0.1", 1), "requests", [(0, 1)])


def test_send_times_random_gaps_repeat_and_keep_the_rate():
    plan = replace(PLAN, phases=[(100, 50)], seed=3)

    times = list(send_times(plan))

    assert times == list(send_times(plan))
    assert len(times) == pytest.approx(5000, rel=0.05)
    assert times == sorted(times)
    assert times[-1] < 100


def test_send_times_even_gaps_are_even():
    plan = replace(PLAN, phases=[(1, 4)], poisson=False)

    assert list(send_times(plan)) == [0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("poisson", [True, False], ids=["poisson", "even"])
def test_send_times_of_all_parts_together_keep_the_rate_of_each_phase(poisson):
    phases = [(40.0, 50.0), (20.0, 200.0), (40.0, 50.0)]
    plans = [replace(PLAN, phases=phases, poisson=poisson, part=(n, 3)) for n in range(3)]

    times = [time for plan in plans for time in send_times(plan)]

    found = [
        sum(low <= time < high for time in times) for low, high in ((0, 40), (40, 60), (60, 100))
    ]
    assert found == pytest.approx([2000, 4000, 2000], rel=0.06)
    assert len(set(times)) == len(times)


def test_send_times_of_two_parts_are_independent():
    plans = [replace(PLAN, phases=[(10, 100)], part=(n, 2)) for n in range(2)]

    first, second = (set(send_times(plan)) for plan in plans)

    assert not first & second


def test_plan_json_round_trip():
    plan = replace(PLAN, phases=[(5.0, 10.0)], broken=[(1, 2)], part=(1, 2), body="raw")

    assert from_json(json.loads(json.dumps(asdict(plan)))) == plan


def test_requests_are_read_back_as_written(tmp_path):
    file = tmp_path / "requests"
    written = [b"first", b"", b"the third"]

    places = write_requests(file, written)

    requests = Requests(file)
    assert [bytes(requests.at(place)) for place in places] == written


@pytest.mark.parametrize(
    ("target", "authority"),
    [
        (Target("example.org", 80), "example.org"),
        (Target("example.org", 443, tls=True), "example.org"),
        (Target("example.org", 443), "example.org:443"),
        (Target("::1", 8000), "[::1]:8000"),
    ],
    ids=["http", "https", "other-port", "ipv6"],
)
def test_target_authority_leaves_out_the_usual_port(target, authority):
    assert target.authority == authority

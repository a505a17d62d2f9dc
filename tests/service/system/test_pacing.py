from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.system.pacing import Allowance, RoundRobin
from tests.fakes import FakeClock


def test_allowance_allows_a_burst_and_then_a_rate():
    clock = FakeClock()
    allowance = Allowance(2, 4, clock)

    at_once = [allowance.take() for _ in range(3)]
    clock.advance(0.25)
    later = [allowance.take() for _ in range(2)]

    assert (at_once, later) == ([True, True, False], [True, False])


def test_allowance_says_how_long_until_the_next_event():
    clock = FakeClock()
    allowance = Allowance(1, 4, clock)
    free = allowance.wait_s()
    allowance.take()

    used = allowance.wait_s()
    clock.advance(0.125)

    assert (free, used, allowance.wait_s()) == (0.0, 0.25, 0.125)


@given(st.lists(st.floats(0, 10), max_size=50))
def test_allowance_is_never_exceeded(pauses):
    clock = FakeClock()
    allowance = Allowance(3, 2, clock)
    allowed = 0

    for pause_s in pauses:
        clock.advance(pause_s)
        allowed += allowance.take()

    assert allowed <= 3 + 2 * sum(pauses) + 1e-6


def test_allowance_event_that_costs_more_makes_the_next_one_wait():
    clock = FakeClock()
    allowance = Allowance(2, 4, clock)

    taken = allowance.take(3)

    assert (taken, allowance.take(), allowance.wait_s()) == (True, False, 0.5)


def test_round_robin_goes_round_the_flows_in_the_order_of_their_first_items():
    queue = RoundRobin[str]()
    for item in ("a0", "a1", "a2", "b0", "c0", "b1"):
        queue.push(item[0], item)
    n_items, first = len(queue), queue.first
    popped = [queue.pop() for _ in range(2)]
    queue.push("a", "a3")
    queue.push("d", "d0")

    assert (n_items, first, popped) == (6, "a0", ["a0", "b0"])
    assert [queue.pop() for _ in range(len(queue))] == ["c0", "a1", "b1", "d0", "a2", "a3"]
    assert not queue

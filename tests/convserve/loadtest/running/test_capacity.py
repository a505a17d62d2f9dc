from __future__ import annotations

from random import Random

import pytest

from convserve.loadtest.running.capacity import MAX_TRIALS, Search


def search(
    limit_per_s: float, start_per_s: float, noise: float = 0.0, hiccups: float = 0.0, seed: int = 0
) -> Search:
    """Runs a search against a server with a limit.

    Args:
        noise: standard deviation of the limit between trials, as a share of it.
        hiccups: share of the trials that miss the objective whatever the rate.
    """
    random = Random(seed)  # noqa: S311
    found = Search(start_per_s, 0.03)
    while (rate := found.next_rate()) is not None:
        limit = limit_per_s * (1 + random.gauss(0, noise))
        found.record(rate, kept=rate < limit and random.random() >= hiccups)
    return found


@pytest.mark.parametrize("start_per_s", [5, 100, 150, 250, 265, 300, 2000])
def test_search_brackets_the_limit_from_any_start(start_per_s):
    capacity = search(260, start_per_s).capacity()

    assert capacity is not None
    assert capacity.missed_from_per_s is not None
    assert capacity.rate_per_s <= 260 <= capacity.missed_from_per_s
    assert capacity.missed_from_per_s / capacity.rate_per_s <= 1.03


def test_search_start_near_the_limit_needs_few_trials():
    assert search(260, 250).n_trials <= 10


def test_search_both_ends_are_tried_twice():
    capacity = search(260, 250).capacity()

    assert capacity is not None
    assert "kept the objective in 2 of 2 trials" in capacity.statement
    assert "missed it in 2 of 2" in capacity.statement


@pytest.mark.parametrize(
    ("noise", "hiccups"), [(0.02, 0.0), (0.0, 0.1), (0.02, 0.1)], ids=["noise", "hiccups", "both"]
)
def test_search_noise_moves_the_answer_little(noise, hiccups):
    found = [search(260, 200 + seed, noise, hiccups, seed).capacity() for seed in range(200)]

    rates = sorted(one.rate_per_s for one in found if one is not None)
    assert len(rates) == 200
    assert rates[10] > 0.92 * 260  # 5th percentile
    assert rates[-11] < 1.05 * 260


def test_search_server_that_keeps_no_rate_has_no_capacity():
    found = search(0, 100)

    assert found.capacity() is None
    assert found.n_trials <= MAX_TRIALS


def test_search_that_ended_early_says_so():
    found = Search(100, 0.03)
    found.record(100, kept=True)
    found.record(130, kept=False)

    capacity = found.capacity()

    assert capacity is not None
    assert capacity.statement.endswith("30.0% apart. The search ended early.")


def test_search_that_came_to_its_end_does_not_say_that_it_ended_early():
    capacity = search(260, 250).capacity()

    assert capacity is not None
    assert "ended early" not in capacity.statement


def test_search_server_without_a_limit_ends_and_says_so():
    capacity = search(float("inf"), 100).capacity()

    assert capacity is not None
    assert capacity.missed_from_per_s is None
    assert "the capacity is higher" in capacity.statement

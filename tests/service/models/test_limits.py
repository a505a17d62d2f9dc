from __future__ import annotations

import math
import time

import pytest

from service.models import limits as module
from service.models.limits import LoadLimits


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time, in its only entry."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_budget_is_exceeded_once_the_time_has_passed(clock):
    budget = LoadLimits(5.0, 1000).begin()

    clock[0] = 105.0
    before = budget.exceeded(0)
    clock[0] = 105.1

    assert before is None
    assert budget.exceeded(0) == "loading takes longer than 5 s (CONVSERVE_LOAD_TIMEOUT_S)"


def test_budget_whose_clock_is_restarted_has_all_its_time(clock):
    budget = LoadLimits(5.0, 1000).begin()
    clock[0] = 104.0
    budget.restart_clock()

    clock[0] = 109.0

    assert budget.exceeded(0) is None


def test_budget_is_exceeded_by_more_memory_than_configured():
    budget = LoadLimits(5.0, 3 * 2**20).begin(siblings=2)  # a configured limit is not shared

    assert budget.exceeded(3 * 2**20) is None
    assert budget.exceeded(3 * 2**20 + 1) == (
        "loading takes more than 3 MiB of memory (CONVSERVE_LOAD_MAX_MEMORY_BYTES)"
    )


@pytest.mark.parametrize(("siblings", "limit"), [(1, 800), (2, 400)], ids=["alone", "two"])
def test_budget_without_a_configured_limit_is_a_share_of_the_available_memory(
    monkeypatch, siblings, limit
):
    monkeypatch.setattr(module, "available_bytes", lambda: 1000.0)

    budget = LoadLimits(5.0).begin(siblings=siblings)

    assert (budget.exceeded(limit), budget.exceeded(limit + 1) is None) == (None, False)


def test_budget_where_the_available_memory_is_unknown_has_no_limit(monkeypatch):
    monkeypatch.setattr(module, "available_bytes", lambda: math.inf)

    assert LoadLimits(5.0).begin().exceeded(10**15) is None

from __future__ import annotations

import math
import os
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


@pytest.fixture
def used_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The memory of every process, in its only entry."""
    used = [5_000_000]
    monkeypatch.setattr(module, "private_bytes", lambda _: used[0])
    return used


def test_budget_is_exceeded_once_the_time_has_passed(clock):
    budget = LoadLimits(5.0, 10**12).begin(os.getpid())

    clock[0] = 105.0
    before = budget.exceeded()
    clock[0] = 105.1

    assert before is None
    assert budget.exceeded() == "loading takes longer than 5 s (CONVSERVE_LOAD_TIMEOUT_S)"


def test_budget_is_exceeded_by_more_memory_than_configured_since_it_began(used_bytes):
    # A configured limit is not shared.
    budget = LoadLimits(60.0, 3 * 2**20).begin(os.getpid(), siblings=2)

    used_bytes[0] += 3 * 2**20
    before = budget.exceeded()
    used_bytes[0] += 1

    assert before is None
    assert budget.exceeded() == (
        "loading takes more than 3 MiB of memory (CONVSERVE_LOAD_MAX_MEMORY_BYTES)"
    )


@pytest.mark.parametrize(("siblings", "limit"), [(1, 800), (2, 400)], ids=["alone", "two"])
def test_budget_without_a_configured_limit_is_a_share_of_the_available_memory(
    monkeypatch, used_bytes, siblings, limit
):
    monkeypatch.setattr(module, "available_bytes", lambda: 1000.0)
    budget = LoadLimits(60.0).begin(os.getpid(), siblings=siblings)

    used_bytes[0] += limit
    before = budget.exceeded()
    used_bytes[0] += 1

    assert before is None
    assert budget.exceeded() is not None


def test_budget_where_the_available_memory_is_unknown_has_no_limit(monkeypatch, used_bytes):
    monkeypatch.setattr(module, "available_bytes", lambda: math.inf)
    budget = LoadLimits(60.0).begin(os.getpid())

    used_bytes[0] += 10**15

    assert budget.exceeded() is None

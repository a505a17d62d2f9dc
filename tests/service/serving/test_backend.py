from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.models.repository import Repository, RunPlan, Shelf, load_repository, load_version
from service.serving.backend import LocalLanes, Observers, batch_limits, prepare_threads, run_plan
from service.settings import Settings
from tests import tinymodel

pytestmark = pytest.mark.anyio
RED = tinymodel.picture("red")
PLAN = RunPlan("cpu")


@pytest.fixture
def apart() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def repository(models_dir: Path) -> Repository:
    """The versions 1 and 2 of `tiny`."""
    return load_repository(Shelf(models_dir, PLAN, versions_per_model=0))


def settings(**changes: Any) -> Settings:
    return Settings.model_validate({"lanes": 1, **changes})


async def test_lanes_answer_and_tell_what_they_did(repository, apart):
    runs, works = [], []
    observers = Observers(lambda *run: runs.append(run[:2]), lambda name, _: works.append(name))
    lanes = LocalLanes(repository, settings(), 1, apart, observers)
    lanes.start()

    answered = await lanes.answerers["tiny", 1].answer(RED, time.monotonic() + 10)

    assert await lanes.stop(1)
    assert answered.probabilities.argmax() == 0
    assert (runs, works) == ([("tiny", 1)], ["tiny"])


async def test_lanes_are_well_before_and_after_the_start_and_not_after_the_end(repository, apart):
    lanes = LocalLanes(repository, settings(), 1, apart)
    states = [(lanes.alive, lanes.trouble())]
    lanes.start()
    states.append((lanes.alive, lanes.trouble()))
    await lanes.stop(1)
    states.append((lanes.alive, lanes.trouble()))

    assert states == [(True, None), (True, None), (False, "a lane is dead or stuck")]
    assert lanes.at_rest


async def test_lanes_of_unchanged_versions_go_on_in_the_successor(repository, models_dir, apart):
    lanes = LocalLanes(repository, settings(), 1, apart)
    lanes.start()
    kept, dropped = lanes.answerers["tiny", 2], lanes.answerers["tiny", 1]
    replaced = load_version(models_dir, "tiny", 1, PLAN)

    successor = await lanes.renewed(Repository([replaced, repository.get("tiny", 2)]))
    successor.start()
    await lanes.stop(1)

    answered = await successor.answerers["tiny", 2].answer(RED, time.monotonic() + 10)
    states = [kept.batcher.alive, dropped.batcher.alive, successor.alive]
    await successor.stop(1)
    assert answered.probabilities.argmax() == 0
    assert successor.answerers["tiny", 2] is kept
    assert successor.answerers["tiny", 1] is not dropped
    assert states == [True, False, True]


def test_lanes_are_counted_over_the_versions_of_a_model(repository, apart):
    lanes = LocalLanes(repository, settings(lanes=3), 1, apart)

    assert (lanes.lanes("tiny"), lanes.lanes("other"), lanes.waiting("tiny")) == (6, 0, 0)


def test_lanes_load_versions_in_this_process(repository, models_dir, apart):
    lanes = LocalLanes(repository, settings(), 1, apart)

    loaded = lanes.load(models_dir, "tiny", 1, PLAN)

    assert loaded.engine.run is not None
    assert loaded.key == ("tiny", 1)


@pytest.mark.parametrize(
    ("changes", "cpus", "expected"),
    [
        ({"lanes": None}, 4, 4),
        ({"lanes": None, "threads_per_lane": 2}, 4, 2),
        ({"lanes": None, "threads_per_lane": 8}, 4, 1),
        ({"lanes": 3}, 4, 3),
    ],
    ids=["cores", "threads", "at_least_one", "configured"],
)
def test_lanes_follow_cores_and_settings(repository, changes, cpus, expected):
    limits = batch_limits(repository.get("tiny"), settings(**changes), cpus)

    assert limits.lanes == expected


def test_lanes_limits_follow_the_settings(repository):
    changes = {"max_wait_ms": 7, "max_in_flight": 9, "stuck_after_s": 5}

    limits = batch_limits(repository.get("tiny"), settings(**changes), 1)

    assert (limits.max_wait_s, limits.max_queue, limits.stuck_after_s) == (0.007, 9, 5)


@pytest.mark.parametrize(
    ("changes", "expected"), [({}, 2), ({"prepare_threads": 3}, 3)], ids=["half", "configured"]
)
def test_prepare_threads_follow_cores_and_settings(repository, changes, expected):
    assert prepare_threads(repository, settings(**changes), 4) == expected


def test_run_plan_gives_a_lone_run_all_cores():
    plan = run_plan(settings(provider="cpu", threads_per_lane=2, max_batch_size=3), 4)

    assert (plan.provider, plan.threads, plan.wide_threads, plan.max_batch_size) == ("cpu", 2, 4, 3)

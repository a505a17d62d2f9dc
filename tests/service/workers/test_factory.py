"""Real worker processes for a set of versions of the tiny model."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import NothingToServe
from contract.images import ImageLimits, inspect
from service.batching.batcher import Batcher, BatchLimits
from service.batching.lane import LaneCallbacks, RowResult
from service.batching.work import Preparation
from service.errors import EngineFailure, WorkerNotStarted
from service.models.limits import LoadLimits
from service.models.repository import EngineConfig, Repository
from service.models.selection import RepositoryConfig, load_repository
from service.workers.factory import (
    ProcessLaneFactory,
    RemoteEngine,
    WorkerConfig,
    start_children,
)
from service.workers.launch import LaunchedWorker, ProcessLauncher
from service.workers.proving import load_in_child
from tests import tinymodel
from tests.waiting import until

pytestmark = pytest.mark.anyio

RED = tinymodel.picture("red")
NO_CALLBACKS = LaneCallbacks(*[lambda *_: None] * 4)


def config_of(models_dir: Path, **run: Any) -> WorkerConfig:
    config = RepositoryConfig(models_dir, EngineConfig("cpu", **run), tinymodel.LOAD_ALL)
    return WorkerConfig(config, ImageLimits(), "info", LoadLimits(60.0))


def start(
    config: WorkerConfig, count: int, max_memory_bytes: int | None = None
) -> tuple[ProcessLaneFactory, Repository]:
    return start_children(config, count, partial(load_in_child, config), max_memory_bytes)


def loaded_here(models_dir: Path) -> Repository:
    """The same repository, loaded in this process."""
    return load_repository(config_of(models_dir).repository)


async def classify(batcher: Batcher, repository: Repository, number: int) -> RowResult:
    version = repository.get("tiny", number)
    deadline_s = time.monotonic() + 30
    recipe = Preparation(inspect(RED), version.manifest, deadline_s)
    return await batcher.submit(version, recipe, deadline_s)


async def answers_of(factory: ProcessLaneFactory, repository: Repository, lanes: int) -> list[int]:
    """The answers of the factory's lanes to a red picture, one per version."""
    batcher = Batcher(factory, BatchLimits(lanes=lanes))
    batcher.start()
    try:
        rows = [await classify(batcher, repository, one.key[1]) for one in repository.versions()]
        assert batcher.n_ready == lanes
    finally:
        finished = await batcher.stop()
    assert finished
    return [one.ranking[0][0] for one in rows]


def statuses(launched: list[LaunchedWorker]) -> list[int | None]:
    return [one.process.poll() for one in launched]


async def test_children_serve_every_version_in_the_repository(models_dir):
    factory, repository = start(config_of(models_dir), 2)
    ready = list(factory._ready)
    before = statuses(ready)

    answers = await answers_of(factory, repository, 2)

    assert [one.key for one in repository.versions()] == [("tiny", 1), ("tiny", 2)]
    assert (before, answers, statuses(ready)) == ([None, None], [0, 0], [0, 0])


async def test_children_that_are_not_needed_are_killed(models_dir):
    factory, _ = start(config_of(models_dir), 1)
    (launched,) = factory._ready

    factory.abort()

    assert (launched.process.poll(), factory._ready) == (-9, [])


async def test_children_repository_equals_one_loaded_in_this_process(models_dir):
    factory, repository = start(config_of(models_dir, max_batch_size=3), 1)
    factory.abort()

    ours = load_repository(config_of(models_dir, max_batch_size=3).repository)
    for one, remote in zip(ours.versions(), repository.versions(), strict=True):
        assert isinstance(remote.engine, RemoteEngine)
        for name in (
            "manifest",
            "manifest_sha256",
            "provider",
            "fallback",
            "max_batch_size",
            "golden_difference",
        ):
            assert getattr(remote, name) == getattr(one, name)
        assert remote.load_s > 0


def test_children_repository_has_the_default_model_of_the_file(tmp_path):
    for name in ("another", "tiny"):
        tinymodel.write_version(tmp_path, name)
    (tmp_path / "repository.toml").write_text('default = "tiny"')
    config = RepositoryConfig(tmp_path, EngineConfig("cpu"))

    factory, repository = start(WorkerConfig(config, ImageLimits(), "info", LoadLimits(60.0)), 1)
    factory.abort()

    assert repository.default_name == "tiny"


def test_children_load_what_is_left_when_a_version_is_broken(tmp_path, monkeypatch):
    for number in (1, 2):
        tinymodel.write_version(tmp_path, version=number)
    (tmp_path / "tiny" / "2" / "model.onnx").write_bytes(b"broken")
    made = record_launches(monkeypatch)
    config = RepositoryConfig(tmp_path, EngineConfig("cpu"))

    factory, repository = start(WorkerConfig(config, ImageLimits(), "info", LoadLimits(60.0)), 1)

    alive = [one for one in made if one.process.poll() is None]
    factory.abort()
    assert [one.key for one in repository.versions()] == [("tiny", 1)]
    assert "model.onnx" in repository.problems[0]
    assert len(alive) == 1


@pytest.mark.parametrize("exists", [True, False], ids=["no_such_default", "no_version"])
def test_children_are_not_started_for_a_repository_that_cannot_be_served(
    tmp_path, exists, monkeypatch
):
    made = record_launches(monkeypatch)
    if exists:
        tinymodel.write_version(tmp_path)
        (tmp_path / "repository.toml").write_text('default = "another"')
    config = RepositoryConfig(tmp_path, EngineConfig("cpu"))

    with pytest.raises(NothingToServe):
        start(WorkerConfig(config, ImageLimits(), "info", LoadLimits(60.0)), 1)

    assert made == []


def record_launches(monkeypatch: pytest.MonkeyPatch) -> list[LaunchedWorker]:
    made: list[LaunchedWorker] = []
    launch_now = ProcessLauncher.launch_now

    def record_launch(launcher: ProcessLauncher, count: int) -> list[LaunchedWorker]:
        launched = launch_now(launcher, count)
        made.extend(launched)
        return launched

    monkeypatch.setattr(ProcessLauncher, "launch_now", record_launch)
    return made


def test_remote_engine_runs_nothing():
    with pytest.raises(EngineFailure):
        RemoteEngine().run(np.zeros((1, 8, 8, 3), np.uint8))


# Renewal with another set of versions


async def test_children_for_another_repository_are_ready_with_the_new_factory(models_dir):
    config = config_of(models_dir)
    first, _ = start(config, 1)
    version = load_in_child(config, models_dir, "tiny", 2, EngineConfig("cpu"))

    repository = Repository([version])

    factory = await first.renewed(repository, 2)

    before = statuses([*first._ready, *factory._ready])
    answers = await answers_of(factory, repository, 2)
    first.abort()
    assert (before, answers) == ([None] * 3, [0])


async def test_children_are_all_killed_if_one_does_not_start(models_dir, monkeypatch):
    launch, made, failed = ProcessLauncher.launch, [], asyncio.Event()

    async def fail_once(launcher: ProcessLauncher) -> LaunchedWorker:
        if not failed.is_set():
            failed.set()
            raise WorkerNotStarted("no memory")
        made.append(await launch(launcher))
        return made[-1]

    monkeypatch.setattr(ProcessLauncher, "launch", fail_once)
    factory = ProcessLaneFactory(config_of(models_dir), loaded_here(models_dir), [])

    with pytest.raises(WorkerNotStarted):
        await factory.renewed(loaded_here(models_dir), 2)

    assert set(statuses(made)) <= {-9}


@pytest.mark.parametrize("one_is_ready", [True, False], ids=["one_is_ready", "none_is_ready"])
async def test_children_cancelled_while_they_start_are_killed(
    models_dir, monkeypatch, started, one_is_ready
):
    launch, ready, never = ProcessLauncher.launch, asyncio.Event(), asyncio.Event()

    async def launch_one(launcher: ProcessLauncher) -> LaunchedWorker:
        if ready.is_set() or not one_is_ready:
            await never.wait()
        launched = await launch(launcher)
        ready.set()
        return launched

    monkeypatch.setattr(ProcessLauncher, "launch", launch_one)
    factory = ProcessLaneFactory(config_of(models_dir), loaded_here(models_dir), [])

    task = asyncio.create_task(factory.renewed(loaded_here(models_dir), 2))

    if one_is_ready:
        await ready.wait()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert task.cancelled()
    assert [one.returncode for one in started] == [-9] * len(started)


async def test_process_factory_starts_new_children_once_the_ready_ones_are_used(models_dir):
    factory, repository = start(config_of(models_dir), 1)
    (launched,) = factory._ready
    batcher = Batcher(factory, BatchLimits(lanes=1))
    batcher.start()
    first = await classify(batcher, repository, 1)

    launched.process.kill()
    await until(lambda: not batcher.n_ready)  # noticed without a request
    second = await classify(batcher, repository, 1)
    await batcher.stop()

    assert [one.ranking[0][0] for one in (first, second)] == [0, 0]
    assert (factory.restarts, batcher.alive) == (True, True)


async def test_process_factory_is_closed_once_its_children_have_ended(models_dir):
    factory, _ = start(config_of(models_dir), 2)
    ready = list(factory._ready)
    lanes = [factory.open(NO_CALLBACKS) for _ in range(2)]
    for lane in lanes:
        lane.close()

    await factory.wait_closed()

    assert None not in statuses(ready)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.batching.batcher import STUCK_AFTER_S
from service.batching.sizing import batch_limits, engine_config, prepare_threads
from service.models.repository import (
    EngineConfig,
    LoadedVersion,
    Repository,
)
from service.models.selection import RepositoryConfig, load_repository
from service.settings import Settings
from tests import tinymodel


@pytest.fixture(scope="module")
def repository(models_dir: Path) -> Repository:
    """Versions 1 and 2 of `tiny`."""
    return load_repository(RepositoryConfig(models_dir, EngineConfig("cpu"), tinymodel.LOAD_ALL))


def on_gpu(version: LoadedVersion) -> LoadedVersion:
    values = {name: getattr(version, name) for name in LoadedVersion.__slots__}
    return LoadedVersion(**values | {"provider": "cuda"})


def settings(**changes: Any) -> Settings:
    return Settings.model_validate(changes)


@pytest.mark.parametrize(
    ("changes", "cpus", "lanes"),
    [({}, 4, 4), ({}, 1, 1), ({"lanes": 3}, 4, 3), ({"workers": 2}, 4, 2)],
    ids=["cores", "one_core", "lanes", "workers"],
)
def test_lanes_follow_cores_and_settings(repository, changes, cpus, lanes):
    assert batch_limits(repository, settings(**changes), cpus).lanes == lanes


def test_lanes_are_counted_for_all_versions_together(repository):
    """With one version on a GPU and one on the CPU, the GPU's runs take one of the lanes."""
    first, second = repository.versions()
    mixed, gpu = Repository([on_gpu(first), second]), Repository([on_gpu(first), on_gpu(second)])

    counts = [batch_limits(one, settings(), 4).lanes for one in (repository, mixed, gpu)]

    assert counts == [4, 4, 1]


def test_limits_follow_the_settings(repository):
    limits = batch_limits(repository, settings(max_wait_ms=7, max_in_flight=9), 1)

    assert (limits.max_wait_s, limits.max_queue) == (0.007, 9)
    assert limits.stuck_after_s == STUCK_AFTER_S


@pytest.mark.parametrize(("cpus", "threads"), [(1, 1), (2, 1), (8, 4)])
def test_prepare_threads_leave_half_of_the_cores_to_runs(repository, cpus, threads):
    assert prepare_threads(repository, cpus) == threads


def test_prepare_threads_have_all_cores_if_a_version_runs_on_a_gpu(repository):
    first, second = repository.versions()

    assert prepare_threads(Repository([on_gpu(first), second]), 8) == 8


def test_engine_config_gives_a_lone_run_all_cores_and_others_one():
    config = engine_config(settings(provider="cpu", max_batch_size=3), 4)

    assert (config.provider, config.threads, config.lone_run_threads, config.max_batch_size) == (
        "cpu",
        1,
        4,
        3,
    )

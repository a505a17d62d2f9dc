"""Crews of real worker processes, of the tiny model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import VersionCorrupt
from service.errors import EngineFailure, WorkerNotStarted
from service.models.repository import RunPlan, Shelf, load_repository
from service.serving.backend import Observers
from service.settings import Settings
from service.workers.crew import EngineElsewhere, Recruiter
from service.workers.launch import Launched, ProcessLauncher
from tests import tinymodel

pytestmark = pytest.mark.anyio
RED = tinymodel.picture("red")


def recruiter(models_dir: Path, cpus: int = 2, **settings: Any) -> Recruiter:
    values = {"workers": 1, "provider": "cpu", "lanes": 1, **settings}
    shelf = Shelf(models_dir, RunPlan("cpu"), versions_per_model=0)
    return Recruiter(Settings.model_validate(values), shelf, cpus, Observers())


async def test_crew_serves_every_version_on_the_shelf(models_dir):
    crew = recruiter(models_dir).first()
    crew.start()
    try:
        answers = {
            key: await answerer.answer(RED, time.monotonic() + 30)
            for key, answerer in crew.answerers.items()
        }
    finally:
        finished = await crew.stop(5)

    assert [int(one.probabilities.argmax()) for one in answers.values()] == [0, 0]
    assert (set(answers), finished) == ({("tiny", 1), ("tiny", 2)}, True)


def test_crew_repository_is_described_as_one_of_this_process(models_dir):
    crew = recruiter(models_dir).first()
    crew.abort()

    here = load_repository(Shelf(models_dir, RunPlan("cpu"), versions_per_model=0))
    for ours, theirs in zip(here.versions(), crew.repository.versions(), strict=True):
        assert isinstance(theirs.engine, EngineElsewhere)
        for name in ("manifest", "manifest_sha256", "provider", "fallback", "max_batch_size"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert theirs.golden_difference == ours.golden_difference


def test_crew_engine_of_the_front_runs_nothing():
    with pytest.raises(EngineFailure):
        EngineElsewhere().run(np.zeros((1, 8, 8, 3), np.uint8))


async def test_crew_for_a_renewed_repository_is_ready_when_it_is_there(models_dir):
    recruits = recruiter(models_dir, workers=2)
    version = recruits.prove(models_dir, "tiny", 2, RunPlan("cpu"))

    crew = await recruits.next(type(load_repository(Shelf(models_dir, RunPlan("cpu"))))([version]))

    ready = [one.process.poll() for one in crew._ready]
    await crew.stop(0)
    assert (list(crew.answerers), ready) == ([("tiny", 2)], [None, None])


async def test_crew_of_which_one_worker_fails_is_ended_as_a_whole(models_dir, monkeypatch):
    recruits = recruiter(models_dir, workers=2)
    repository = load_repository(Shelf(models_dir, RunPlan("cpu")))
    launch = ProcessLauncher.launch
    made: list[Launched | None] = []

    async def fail_once(launcher: ProcessLauncher) -> Any:
        if not made:
            made.append(None)
            raise WorkerNotStarted("no memory")
        launched = await launch(launcher)
        made.append(launched)
        return launched

    monkeypatch.setattr(ProcessLauncher, "launch", fail_once)

    with pytest.raises(WorkerNotStarted):
        await recruits.next(repository)

    assert all(one.process.poll() == -9 for one in made if one)


def test_crew_version_that_is_broken_is_not_proven(tmp_path):
    tinymodel.write_version(tmp_path)
    (tmp_path / "tiny" / "1" / "model.onnx").write_bytes(b"x")

    with pytest.raises(VersionCorrupt, match="tiny/1"):
        recruiter(tmp_path).prove(tmp_path, "tiny", 1, RunPlan("cpu"))


@pytest.mark.parametrize(
    ("cpus", "workers", "share"), [(8, 2, 4), (2, 4, 1), (5, 2, 2)], ids=["even", "few", "odd"]
)
def test_crew_workers_share_the_cores(tmp_path, cpus, workers, share):
    launcher = recruiter(tmp_path, cpus, workers=workers)._launcher([])

    assert launcher._plan["cpus"] == share

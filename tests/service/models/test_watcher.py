from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI

from contract.errors import VersionCorrupt
from service.app import create_app
from service.batching.batcher import Batcher
from service.errors import WorkerNotStarted
from service.models.repository import EngineConfig, LoadedVersion, load_version
from service.models.selection import RepositoryConfig
from service.models.watcher import RepositoryWatcher
from service.running import Service
from service.settings import Settings
from tests import tinymodel

pytestmark = pytest.mark.anyio
RED = tinymodel.picture("red")


class RunningService:
    """A running application, and a watcher that polls when the test says so."""

    def __init__(self, models_dir: Path, **settings: Any) -> None:
        self.models_dir = models_dir
        config = RepositoryConfig(models_dir, EngineConfig("cpu"), settings.get("repository_file"))
        seen = config.snapshot()
        self.now_s = 0.0

        values = {"models_dir": models_dir, "provider": "cpu", "models_poll_s": 0, **settings}
        self.app: FastAPI = create_app(Settings.model_validate(values))
        self.service: Service = self.app.state.service

        self.watcher = RepositoryWatcher(
            config,
            self.service,
            metrics=self.service.metrics,
            seen=seen,
            clock=lambda: self.now_s,
        )

    async def __aenter__(self) -> RunningService:
        self.service.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.stop()

    @property
    def served(self) -> list[tuple[str, int]]:
        return [version.key for version in self.service.repository.versions()]

    @property
    def batcher(self) -> Batcher:
        return self.service._backend.batcher

    def adoptions(self, outcome: str) -> float:
        return float(self.service.metrics.adoptions.labels(outcome)._value.get())

    def failing(self) -> float:
        return float(self.service.metrics.adoptions_failing._value.get())

    def page(self) -> list[str]:
        return self.service.metrics.render().decode().splitlines()

    def series(self) -> set[str]:
        """The names and labels on the metrics page, except of the version that answers now."""
        lines = {line.rpartition(" ")[0] for line in self.page() if not line.startswith("#")}
        return {line for line in lines if not line.startswith("convserve_model_info")}

    async def classify(self) -> int:
        classifier = self.service.dependencies.classifier
        with classifier.active.find("tiny") as served:
            answer = await classifier.classify(served, [RED], time.monotonic() + 30)
        (outcome,) = answer.outcomes
        assert isinstance(outcome, list)
        assert answer.manifest.labels[outcome[0][0]].name == "red"
        return answer.manifest.version


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tinymodel.write_version(tmp_path)
    return tmp_path


async def test_watcher_adopts_a_newer_version_and_drops_the_older(root):
    async with RunningService(root) as running:
        tinymodel.write_version(root, version=2)
        before = await running.classify()

        await running.watcher.poll()

        assert (before, await running.classify()) == (1, 2)
        assert running.served == [("tiny", 2)]
        assert running.adoptions("adopted") == 1


async def test_watcher_keeps_unchanged_versions_as_they_are(root):
    async with RunningService(root, repository_file=tinymodel.LOAD_ALL) as running:
        first = running.service.repository.get("tiny", 1)
        tinymodel.write_version(root, version=2)

        await running.watcher.poll()

        assert running.served == [("tiny", 1), ("tiny", 2)]
        assert running.service.repository.get("tiny", 1) is first
        assert await running.classify() == 2


async def test_watcher_adopts_new_models_and_drops_removed_ones(root):
    async with RunningService(root) as running:
        tinymodel.write_version(root, name="other")
        await running.watcher.poll()
        both = running.served
        shutil.rmtree(root / "tiny")

        await running.watcher.poll()

        assert both == [("other", 1), ("tiny", 1)]
        assert running.served == [("other", 1)]


async def test_watcher_logs_what_came_and_what_went(root, caplog):
    async with RunningService(root) as running:
        tinymodel.write_version(root, name="other")
        await running.watcher.poll()
        shutil.rmtree(root / "tiny")
        tinymodel.write_version(root, name="other", version=2)
        with caplog.at_level(logging.INFO):
            await running.watcher.poll()

    (adopted,) = [one.__dict__ for one in caplog.records if one.message == "adopted"]
    assert (adopted["added"], adopted["removed"]) == (["other/2"], ["other/1", "tiny/1"])
    assert adopted["versions"] == ["other/2"]
    assert (adopted["answers"], adopted["aliases"]) == ({"other": 2, "tiny": None}, {})


async def test_watcher_gives_versions_their_series_and_takes_them_away(root):
    async with RunningService(root) as running:
        before = running.series()
        await running.classify()
        tinymodel.write_version(root, version=2)

        await running.watcher.poll()

        both = running.series()
        await asyncio.gather(*running.service._retiring)
        await asyncio.sleep(0)
        after = running.series()
        assert {one.replace('version="2"', 'version="1"') for one in after} == before
        assert both == before | after
        assert len(before & after) < len(before)
        new = [line for line in running.page() if 'version="2"' in line and "_info" not in line]
        assert {float(line.rpartition(" ")[2]) for line in new} == {0}
        assert not any('version="1"' in line for line in running.page())


async def test_watcher_series_of_a_version_in_use_are_counted_until_it_retires(root):
    async with RunningService(root) as running:
        metrics, key = running.service.metrics, ("tiny", 1)
        served = running.service.dependencies.classifier.active.find("tiny")
        served.__enter__()
        tinymodel.write_version(root, version=2)
        await running.watcher.poll()
        await asyncio.sleep(0)

        metrics.count_answer(key, ["ok"], [])
        during = 'convserve_images_total{model="tiny",outcome="ok",version="1"} 1.0'
        found = during in running.page()
        served.__exit__()
        await asyncio.gather(*running.service._retiring)
        await asyncio.sleep(0)
        metrics.count_answer(key, ["ok"], [("infer", 1.0)])
        metrics.count_run(key, 1)
        metrics.count_work(key, 1.0)

        assert found
        assert not any('version="1"' in line for line in running.page())


async def test_watcher_adopts_a_replaced_version_with_the_same_number(root):
    async with RunningService(root) as running:
        before = running.service.repository.get("tiny").manifest_sha256
        shutil.rmtree(root / "tiny")
        tinymodel.write_version(root, architecture="another")

        await running.watcher.poll()

        version = running.service.repository.get("tiny")
        assert version.manifest.architecture == "another"
        assert version.manifest_sha256 != before
        assert await running.classify() == 1


async def test_watcher_refuses_a_broken_version_and_keeps_serving(root, caplog):
    async with RunningService(root) as running:
        tinymodel.write_version(root, version=2)
        (root / "tiny" / "2" / "model.onnx").write_bytes(b"broken")

        with caplog.at_level(logging.ERROR):
            await running.watcher.poll()
            await running.watcher.poll()

        assert running.served == [("tiny", 1)]
        assert await running.classify() == 1
        assert running.adoptions("failed") == 1, "once, not at every poll"
        assert running.failing() == 1
        shutil.rmtree(root / "tiny" / "2")
        await running.watcher.poll()
        assert running.failing() == 0
        assert "model.onnx" in caplog.records[0].__dict__["reason"]


async def test_watcher_retries_a_version_once_its_copy_is_complete(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    tinymodel.write_version(elsewhere, version=2)
    async with RunningService(root) as running:
        late = elsewhere / "tiny" / "2" / "model.onnx"
        graph = late.read_bytes()
        late.unlink()
        shutil.copytree(elsewhere / "tiny" / "2", root / "tiny" / "2")
        await running.watcher.poll()
        half = running.served
        (root / "tiny" / "2" / "model.onnx").write_bytes(graph)

        await running.watcher.poll()

        assert (half, running.served) == ([("tiny", 1)], [("tiny", 2)])
        assert running.failing() == 0


async def test_watcher_of_an_emptied_repository_keeps_serving(root):
    async with RunningService(root) as running:
        shutil.rmtree(root / "tiny")

        await running.watcher.poll()

        assert await running.classify() == 1
        assert running.adoptions("failed") == 1


async def test_watcher_without_a_change_loads_nothing(root, monkeypatch):
    renewed: list[object] = []
    monkeypatch.setattr(
        "service.models.watcher.renew", lambda *arguments: renewed.append(arguments)
    )
    async with RunningService(root) as running:
        before = running.service.repository

        await running.watcher.poll()

        assert not renewed
        assert running.service.repository is before


async def test_adopted_versions_do_not_disturb_a_request_in_progress(root, monkeypatch):
    """The old version retires after a request chose it, but before the request is in its queue."""
    async with RunningService(root) as running:
        gate, decoding = asyncio.Event(), asyncio.Event()
        batcher = running.batcher
        submit = batcher.submit

        async def held(*arguments: Any, **options: Any) -> Any:
            decoding.set()
            await gate.wait()
            return await submit(*arguments, **options)

        monkeypatch.setattr(batcher, "submit", held)
        in_progress = asyncio.create_task(running.classify())
        await decoding.wait()
        tinymodel.write_version(root, version=2)
        await running.watcher.poll()
        new = await running.classify()
        retiring = list(running.service._retiring)

        gate.set()

        assert (new, await in_progress) == (2, 1)
        await asyncio.gather(*retiring)
        assert not batcher.alive, "its lanes have ended"
        assert not running.service._retiring


async def test_polling_continues_after_a_poll_that_raised(root, monkeypatch, caplog):
    async with RunningService(root) as running:
        polled = asyncio.Event()
        polls = 0

        async def poll() -> None:
            nonlocal polls
            polls += 1
            if polls == 1:
                raise OSError("the disk is away")
            polled.set()

        monkeypatch.setattr(running.watcher, "poll", poll)

        async with running.watcher.polling(1e-3):
            await polled.wait()

        assert "polling for new versions failed" in caplog.text
        assert running.failing() == 1


async def test_watcher_repository_that_can_be_read_again_is_not_failing(root):
    async with RunningService(root) as running:
        running.service.metrics.adoptions_failing.set(1)

        await running.watcher.poll()

        assert running.failing() == 0


async def test_watcher_unexpected_error_of_a_version_stays_reported(root, monkeypatch):
    def fail(*_: object, **__: object) -> object:
        raise RuntimeError("the graph's own error")

    async with RunningService(root) as running:
        monkeypatch.setattr("service.models.watcher.renew", fail)
        tinymodel.write_version(root, version=2)
        with pytest.raises(RuntimeError):
            await running.watcher.poll()

        await running.watcher.poll()

        assert running.failing() == 1


@pytest.mark.parametrize("interval_s", [0, 3600], ids=["never", "hourly"])
async def test_polling_on_request_does_not_wait_for_the_interval(root, monkeypatch, interval_s):
    polls: asyncio.Queue[int] = asyncio.Queue()
    count = itertools.count(1)

    async def poll() -> None:
        polls.put_nowait(next(count))

    async with RunningService(root) as running:
        monkeypatch.setattr(running.watcher, "poll", poll)

        async with running.watcher.polling(interval_s):
            for number in (1, 2):
                running.watcher.poll_soon()
                assert await polls.get() == number

        assert polls.empty()


async def test_polling_request_during_a_poll_causes_one_more(root, monkeypatch):
    begun: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def poll() -> None:
        done = asyncio.Event()
        begun.put_nowait(done)
        await done.wait()

    async with RunningService(root) as running:
        monkeypatch.setattr(running.watcher, "poll", poll)

        async with running.watcher.polling(0):
            running.watcher.poll_soon()
            first = await begun.get()
            running.watcher.poll_soon()
            first.set()

            second = await begun.get()

        assert second is not first


async def test_watcher_whose_workers_do_not_start_reports_it_and_retries(root, caplog):
    async with RunningService(root) as running:
        attempts: list[object] = []

        async def adopt(repository: Any) -> None:
            attempts.append(repository)
            if len(attempts) == 1:
                raise WorkerNotStarted("no memory")
            await running.service.adopt(repository)

        running.watcher._serving = SimpleNamespace(
            repository=running.service.repository, adopt=adopt
        )
        tinymodel.write_version(root, version=2)

        with caplog.at_level(logging.ERROR):
            await running.watcher.poll()
        before, failing = running.served, running.failing()
        await running.watcher.poll()

        assert (before, running.served) == ([("tiny", 1)], [("tiny", 2)])
        assert (running.adoptions("failed"), running.adoptions("adopted")) == (1, 1)
        assert (failing, running.failing()) == (1, 0)
        assert caplog.records[0].__dict__["reason"] == "no memory"


async def test_watcher_change_of_the_answer_keeps_backend_and_requests(root):
    """Which of the loaded versions answers is changed without new lanes."""
    file = root / "repository.toml"
    file.write_text("[models.tiny]\nload = [1, 2]\nanswer = 1")
    tinymodel.write_version(root, version=2)
    async with RunningService(root) as running:
        before, backend = await running.classify(), running.service._backend
        file.write_text("[models.tiny]\nload = [1, 2]\nanswer = 2")

        await running.watcher.poll()

        assert (before, await running.classify()) == (1, 2)
        assert running.service._backend is backend
        assert running.adoptions("adopted") == 1


async def test_watcher_tries_a_failed_version_again_after_a_pause(root):
    loads: list[int] = []

    def load(models_dir: Path, name: str, number: int, config: EngineConfig) -> LoadedVersion:
        loads.append(number)
        if len(loads) == 1:
            raise VersionCorrupt("tiny/2: the disk is away")
        return load_version(models_dir, name, number, config)

    async with RunningService(root) as running:
        running.watcher._load = load
        tinymodel.write_version(root, version=2)
        await running.watcher.poll()
        running.now_s += 59
        await running.watcher.poll()
        early = list(loads)
        running.now_s += 2

        await running.watcher.poll()

        assert (early, loads) == ([2], [2, 2])
        assert await running.classify() == 2
        assert running.failing() == 0


async def test_watcher_shows_versions_that_are_held_back(root):
    async with RunningService(root) as running:
        tinymodel.write_version(root, version=2, metrics=None)
        (root / "repository.toml").write_text("[models.tiny.require]\nmin_test_pictures = 1\n")

        await running.watcher.poll()

        held = running.service.metrics.versions_held._value.get()
        assert (held, running.failing(), await running.classify()) == (2, 1, 1)

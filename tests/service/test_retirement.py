"""Versions that were replaced leave nothing behind: no session, no thread, no descriptor, no process.

The garbage collector is off. It does not see the memory of a session, so it may not come for hours.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.batching.thread_lane import ThreadLane
from service.models import repository
from service.models.providers import open_session
from service.running import Service
from service.workers import factory, proving
from tests import tinymodel
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("no_collections")

RED = tinymodel.picture("red")
N_ADOPTIONS = 10
N_CPUS = 2

Sessions = list[tuple[str, "weakref.ref[Any]"]]


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Sessions:
    """All sessions that this process opens, and their kind."""
    opened: Sessions = []

    def record(*arguments: Any, **options: Any) -> Any:
        session = open_session(*arguments, **options)
        kind = "all cores" if options["threads"] > 1 else "one core"
        opened.append((kind, weakref.ref(session.session)))
        return session

    monkeypatch.setattr(repository, "open_session", record)
    monkeypatch.setattr("service.app.usable_cpus", lambda: N_CPUS)
    return opened


def alive(sessions: Sessions) -> list[str]:
    return [kind for kind, session in sessions if session() is not None]


def usage() -> tuple[int, ...]:
    """Threads and descriptors of this process."""
    return tuple(len(list(Path("/proc/self", one).iterdir())) for one in ("task", "fd"))


def exceeds(now: tuple[int, ...], first: tuple[int, ...]) -> bool:
    return any(one > before for one, before in zip(now, first, strict=True))


def poll(client: TestClient) -> None:
    """Lets the service adopt what was published, and waits until it has let go of the rest."""
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    lanes = list(service._backend.batcher._lanes)

    async def poll_and_retire() -> None:
        assert service.watcher is not None
        await service.watcher.poll()
        await asyncio.gather(*service._retiring)
        await service.watcher._in_thread(lambda: None)  # the call before is over, and forgotten

    client.portal.call(poll_and_retire)  # type: ignore[union-attr]
    for lane in lanes:
        if lane.dead and isinstance(lane, ThreadLane):
            lane._thread.join(20)
    for thread in threading.enumerate():
        if thread.name == "trim":
            thread.join(20)


def version_of(client: TestClient) -> str:
    answer = client.post("/v1/classify", content=RED).json()
    assert answer["predictions"][0]["label"] == "red"
    return str(answer["version"])


def test_replaced_versions_leave_no_session_thread_or_descriptor(make_client, tmp_path, sessions):
    tinymodel.write_version(tmp_path)
    client = make_client(models_dir=tmp_path, lanes=2, provider="cpu", models_poll_s=0)
    answered, usages = [version_of(client)], []

    for number in range(2, N_ADOPTIONS + 2):
        tinymodel.write_version(tmp_path, version=number)
        poll(client)
        answered.append(version_of(client))
        usages.append(usage())

    assert answered == [str(number) for number in range(1, N_ADOPTIONS + 2)]
    assert len(sessions) == 2 * (N_ADOPTIONS + 1)
    assert alive(sessions) == ["one core", "all cores"]
    # The kernel may list a thread for a moment longer.
    wait_until(lambda: not exceeds(usage(), usages[0]))


def test_versions_that_fail_are_not_opened_in_the_service(make_client, tmp_path, sessions):
    tinymodel.write_version(tmp_path)
    client = make_client(models_dir=tmp_path, lanes=1, provider="cpu", models_poll_s=0)

    for number in range(2, 7):
        # Found only by running it, in a child: its answers are those of another picture.
        manifest = tinymodel.write_version(tmp_path, version=number)
        examples = [one.model_dump() for one in manifest.golden]
        examples[0]["top5"] = examples[1]["top5"]
        shutil.rmtree(tmp_path / "tiny" / str(number))
        tinymodel.write_version(tmp_path, version=number, golden=examples)
        poll(client)
        shutil.rmtree(tmp_path / "tiny" / str(number))

    assert len(sessions) == 2
    assert alive(sessions) == ["one core", "all cores"]
    assert version_of(client) == "1"
    assert 'convserve_adoptions_total{outcome="failed"} 5.0' in client.get("/metrics").text


def test_replaced_versions_leave_no_process_or_descriptor(make_client, tmp_path, monkeypatch):
    seen: list[weakref.ref[Any]] = []
    loaded = factory.loaded_remotely

    def record(*arguments: Any) -> Any:
        version = loaded(*arguments)
        seen.append(weakref.ref(version.engine))
        return version

    for module in (factory, proving):
        monkeypatch.setattr(module, "loaded_remotely", record)
    tinymodel.write_version(tmp_path)
    client = make_client(models_dir=tmp_path, workers=1, provider="cpu", models_poll_s=0)
    service = client.app.state.service
    answered, usages, pids = [version_of(client)], [], set()

    for number in range(2, 5):
        tinymodel.write_version(tmp_path, version=number)
        poll(client)
        answered.append(version_of(client))
        usages.append(usage())
        pids.update(service._backend.pids)

    assert answered == ["1", "2", "3", "4"]
    assert [one() is not None for one in seen] == [False, False, False, True]
    assert [pid for pid in pids if Path("/proc", str(pid)).exists()] == service._backend.pids
    wait_until(lambda: not exceeds(usage(), usages[0]))

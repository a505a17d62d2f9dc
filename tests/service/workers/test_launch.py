"""Starts of real worker processes, with the tiny model."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Final

import pytest

from contract.errors import ManifestInvalid, VersionTooCostly
from contract.images.decoding import ImageLimits
from contract.versions import sha256
from service.errors import WorkerNotStarted
from service.models.limits import LoadLimits
from service.models.repository import EngineConfig
from service.workers import launch as launching
from service.workers import wire
from service.workers.__main__ import IMPORT_WHEN_IDLE
from service.workers.launch import ProcessLauncher
from service.workers.priority import ProcessorShare
from service.workers.wire import FrameKind

pytestmark = pytest.mark.anyio


def launcher(
    models_dir: Path, timeout_s: float = 60.0, number: int = 2, *, background: bool = False
) -> ProcessLauncher:
    manifest = models_dir / "tiny" / str(number) / "manifest.json"
    digest = sha256(manifest.read_bytes()) if manifest.exists() else "0" * 64
    plan = {
        "models_dir": str(models_dir),
        "run": asdict(EngineConfig("cpu")),
        "versions": [["tiny", number, digest, None]],
        "limits": asdict(ImageLimits()),
        "log_level": "info",
    }
    return ProcessLauncher(plan, LoadLimits(timeout_s), background=background)


async def test_launching_worker_that_is_ready_returns_its_facts(models_dir):
    launched = await launcher(models_dir).launch()
    running = launched.process.poll()
    launched.abort()

    (facts,) = launched.facts
    assert (facts["provider"], facts["max_batch_size"], running) == ("cpu", 8, None)
    assert launched.process.poll() == -9


def test_launching_several_at_once_are_all_ready(models_dir, started):
    launched = launcher(models_dir).launch_now(2)

    assert [one.process.pid for one in launched] == [one.pid for one in started]
    for one in launched:
        one.abort()


def test_launching_in_the_background_gives_way_to_the_service(models_dir):
    (launched,) = launcher(models_dir, background=True).launch_now(1)

    policy = os.sched_getscheduler(launched.process.pid)
    launched.abort()

    assert policy == os.SCHED_IDLE


def test_launching_in_the_background_starts_again_if_it_gets_no_time(
    models_dir, monkeypatch, started
):
    monkeypatch.setattr(ProcessorShare, "is_starving", lambda _: True)

    (launched,) = launcher(models_dir, background=True).launch_now(1)
    policy = os.sched_getscheduler(launched.process.pid)
    niceness = os.getpriority(os.PRIO_PROCESS, launched.process.pid)
    launched.abort()

    assert [one.poll() for one in started] == [-9, -9]
    assert policy == os.SCHED_OTHER
    assert niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)


async def test_launching_a_serving_child_in_the_background_yields_only_while_importing(
    models_dir, started
):
    launched = await launcher(models_dir, background=True).launch()

    policy = os.sched_getscheduler(launched.process.pid)
    launched.abort()

    assert IMPORT_WHEN_IDLE in started[0].args
    assert policy == os.SCHED_OTHER


async def test_launching_a_serving_child_that_gets_no_time_starts_it_again(
    models_dir, monkeypatch, started
):
    monkeypatch.setattr(ProcessorShare, "is_starving", lambda _: True)

    launched = await launcher(models_dir, background=True).launch()
    launched.abort()

    assert [one.poll() for one in started] == [-9, -9]
    assert IMPORT_WHEN_IDLE not in started[1].args


IMPORTING: Final = """
import os, sys
from service.workers import __main__ as child

class Recorder:
    def find_spec(self, name, *_):
        if name == "service.workers.child":
            print(os.sched_getscheduler(0) == os.SCHED_IDLE)

sys.meta_path.insert(0, Recorder())
child._import_when_idle()
print(os.sched_getscheduler(0) == os.SCHED_OTHER, "service.workers.child" in sys.modules)
"""


def test_child_imports_on_a_thread_that_yields():
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", IMPORTING], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["True", "True", "True"]


def test_launching_worker_whose_connection_ends_exits_by_itself(models_dir):
    (launched,) = launcher(models_dir).launch_now(1)

    launched.sock.close()

    assert launched.process.wait() == 0


async def test_launching_missing_version_raises_the_error_of_the_worker(tmp_path, started):
    with pytest.raises(ManifestInvalid, match="tiny/2"):
        await launcher(tmp_path).launch()

    assert started[0].returncode is not None


async def test_launching_worker_that_starts_too_slowly_is_killed(models_dir, started, monkeypatch):
    monkeypatch.setattr(launching, "_START_S", 0.01)

    with pytest.raises(WorkerNotStarted, match=r"not ready within 0\.01 s"):
        await launcher(models_dir).launch()

    assert started[0].returncode == -9


async def test_launching_worker_that_loads_too_slowly_is_killed(models_dir, started):
    with pytest.raises(VersionTooCostly, match=r"tiny/2: loading takes longer than 0 s"):
        await launcher(models_dir, timeout_s=0.0).launch()

    assert started[0].returncode == -9


@pytest.mark.parametrize(
    ("module", "words"),
    [("this", "exited with status 0"), ("no_such_module", "exited with status 1")],
    ids=["says_nothing", "cannot_run"],
)
def test_launching_process_that_exits_at_once_reports_its_status(
    models_dir, monkeypatch, module, words
):
    monkeypatch.setattr(launching, "_MODULE", module)

    with pytest.raises(WorkerNotStarted, match=words):
        launcher(models_dir).launch_now(2)


def program_sending(pieces: list[bytes]) -> str:
    """A program that sends these bytes to its parent and keeps running."""
    return (
        "import signal, socket, sys\n"
        "sock = socket.socket(fileno=int(sys.argv[1]))\n"
        f"sock.sendall({b''.join(pieces)!r})\n"
        "signal.pause()\n"
    )


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([b"x" * 9], "broke the protocol"),
        (wire.pack(FrameKind.DONE), "sent DONE instead of READY"),
        (wire.pack_failed(ZeroDivisionError("secret")), "its log says why"),
    ],
    ids=["noise", "not_ready", "bug"],
)
def test_launching_worker_that_is_not_ready_is_killed(
    models_dir, monkeypatch, tmp_path, started, pieces, words
):
    (tmp_path / "fake_worker.py").write_text(program_sending(pieces), encoding="ascii")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(launching, "_MODULE", "fake_worker")

    with pytest.raises(WorkerNotStarted, match=words):
        launcher(models_dir).launch_now(1)

    assert started[0].returncode == -9


async def test_launching_cancelled_leaves_no_process(models_dir, started):
    task = asyncio.create_task(launcher(models_dir).launch())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert task.cancelled()
    assert started[0].returncode == -9


async def test_launching_does_not_block_the_event_loop(models_dir):
    task = asyncio.create_task(launcher(models_dir).launch())
    turns = 0
    while not task.done():
        await asyncio.sleep(0)
        turns += 1
    task.result().abort()

    assert turns > 100


def test_launching_leaves_no_file_descriptor_open(models_dir):
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for launched in launcher(models_dir).launch_now(2):
        launched.abort()

    assert count() == before

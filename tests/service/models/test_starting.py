"""Loading in this process under watch. The callback never replaces the process here."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import GoldenMismatch, VersionTooCostly
from contract.versions import read_manifest
from service.models import limits, starting
from service.models.limits import LoadLimits, VersionId
from service.models.repository import EngineConfig, LoadedVersion
from service.models.starting import LimitExceeded, StartGuard, load_watched, watched
from service.system import process
from tests import tinymodel

ROOT = Path(__file__).parents[3]
ENGINE = EngineConfig("cpu")
AMPLE = LoadLimits(60.0, 10**12)


class GivingUp:
    """Records calls; `called` is set by the first."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.called = threading.Event()

    def __call__(self, *arguments: Any) -> None:
        self.calls.append(arguments)
        self.called.set()


def watches() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "load watch"]


def test_watch_gives_up_once_the_time_has_passed():
    give_up = GivingUp()

    with (
        pytest.raises(LimitExceeded, match="longer than 0 s"),
        watched(LoadLimits(0.0, 10**12), give_up),
    ):
        assert give_up.called.wait(20)

    assert len(give_up.calls) == 1
    assert watches() == []


def test_watch_gives_up_while_memory_is_being_taken():
    give_up = GivingUp()
    taken: list[Any] = []

    def take_memory() -> None:
        with watched(LoadLimits(60.0, 100_000_000), give_up):
            while not give_up.called.is_set() and len(taken) < 2000:
                taken.append(np.ones(2**17))  # 1 MiB

    with pytest.raises(LimitExceeded, match="more than 95 MiB"):
        take_memory()

    assert len(give_up.calls) == 1


def test_watch_counts_memory_from_the_beginning_of_the_block(monkeypatch):
    give_up, checks = GivingUp(), threading.Semaphore(0)
    used_bytes, before = [5_000], [None]

    def measure(_: int) -> int:
        checks.release()
        return used_bytes[0]

    monkeypatch.setattr(limits, "private_bytes", measure)

    def take_memory() -> None:
        with watched(LoadLimits(60.0, 100), give_up):
            used_bytes[0] = 5_100
            for _ in range(3):
                checks.acquire(timeout=20)
            before[:] = give_up.calls
            used_bytes[0] = 5_101
            assert give_up.called.wait(20)

    with pytest.raises(LimitExceeded):
        take_memory()

    assert before == []


def test_watch_of_a_block_that_fails_ends_with_it():
    give_up = GivingUp()

    with pytest.raises(ZeroDivisionError), watched(AMPLE, give_up):
        raise ZeroDivisionError

    assert (give_up.calls, watches()) == ([], [])


def test_watch_reports_the_limit_of_a_block_that_fails_because_of_it():
    give_up = GivingUp()

    def fail() -> None:
        with watched(LoadLimits(0.0), give_up):
            assert give_up.called.wait(20)
            raise MemoryError

    with pytest.raises(LimitExceeded):
        fail()


# Loading a version


def version_id(models_dir: Path) -> VersionId:
    return "tiny", 1, read_manifest(models_dir, "tiny", 1)[1]


def test_version_within_the_limits_is_loaded(models_dir):
    give_up = GivingUp()

    version = load_watched(AMPLE, StartGuard({}, give_up), models_dir, "tiny", 1, ENGINE)

    assert (version.key, give_up.calls) == (("tiny", 1), [])


def test_version_with_wrong_answers_is_refused_as_ever(tmp_path):
    examples = [one.model_dump() for one in tinymodel.write_version(tmp_path / "a").golden]
    examples[0]["top5"] = examples[1]["top5"]
    tinymodel.write_version(tmp_path / "b", golden=examples)

    with pytest.raises(GoldenMismatch, match="tiny/1"):
        load_watched(AMPLE, StartGuard(), tmp_path / "b", "tiny", 1, ENGINE)


def test_version_that_is_too_slow_is_given_up_by_its_id(models_dir, monkeypatch):
    give_up = GivingUp()

    def hang(*_: Any, **__: Any) -> LoadedVersion:
        assert give_up.called.wait(20)
        raise RuntimeError("interrupted")

    monkeypatch.setattr(starting, "load_version", hang)

    with pytest.raises(VersionTooCostly, match="tiny/1: loading takes longer than 0 s"):
        load_watched(LoadLimits(0.0), StartGuard({}, give_up), models_dir, "tiny", 1, ENGINE)

    ((version, reason),) = give_up.calls
    assert version == version_id(models_dir)
    assert reason.startswith("loading takes longer")


# The callback cannot end a graph that runs here, so these have a process of their own.
START = """
import os, sys
from pathlib import Path
from service.models.limits import LoadLimits
from service.models.repository import EngineConfig
from service.models.starting import StartGuard, load_watched

def give_up(version, reason):
    print(*version[:2], reason, flush=True)
    os._exit(7)

limits = LoadLimits(float(sys.argv[2]), int(sys.argv[3]))
load_watched(limits, StartGuard({}, give_up), Path(sys.argv[1]), "tiny", 1, EngineConfig("cpu"))
"""


@pytest.mark.parametrize(
    ("graph", "timeout_s", "max_memory_bytes", "message"),
    [
        (tinymodel.endless_graph(), 1, 10**12, "tiny 1 loading takes longer than 1 s"),
        (tinymodel.greedy_graph("load"), 60, 3 * 10**8, "tiny 1 loading takes more than 286 MiB"),
        (tinymodel.greedy_graph("run"), 60, 3 * 10**8, "tiny 1 loading takes more than 286 MiB"),
    ],
    ids=["endless", "gigabytes_to_load", "gigabytes_to_run"],
)
def test_version_whose_graph_exceeds_the_limits_is_given_up(
    tmp_path, graph, timeout_s, max_memory_bytes, message
):
    tinymodel.write_version(tmp_path, graph_file=graph)

    arguments = [str(tmp_path), str(timeout_s), str(max_memory_bytes)]
    ended = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", START, *arguments], cwd=ROOT, capture_output=True, text=True
    )

    assert (ended.returncode, ended.stderr) == (7, "")
    assert ended.stdout.startswith(message)


def test_version_refused_by_an_earlier_attempt_is_not_loaded(models_dir, monkeypatch):
    monkeypatch.setattr(starting, "load_version", None)  # cannot be called
    guard = StartGuard({version_id(models_dir): "it was endless"})

    with pytest.raises(VersionTooCostly, match=r"^tiny/1: it was endless$"):
        load_watched(AMPLE, guard, models_dir, "tiny", 1, ENGINE)


def test_version_that_was_replaced_after_its_refusal_is_loaded(models_dir):
    guard = StartGuard({("tiny", 1, "0" * 64): "it was endless"})

    assert load_watched(AMPLE, guard, models_dir, "tiny", 1, ENGINE).key == ("tiny", 1)


def test_start_without_a_guard_of_its_own_exits_with_three(monkeypatch, caplog):
    statuses: list[int] = []
    monkeypatch.setattr(process, "exit_now", statuses.append)

    with caplog.at_level(logging.CRITICAL):
        StartGuard().give_up(("tiny", 1, ""), "too slow")

    assert statuses == [3]
    assert [(one.message, one.reason) for one in caplog.records] == [("cannot serve", "too slow")]

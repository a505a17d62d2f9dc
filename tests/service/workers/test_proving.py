"""Versions are verified in real child processes, which end at their limits or by themselves."""

from __future__ import annotations

import math
import os
import subprocess
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from contract.errors import (
    GraphMismatch,
    ManifestInvalid,
    ModelError,
    NothingToServe,
    VersionCorrupt,
    VersionTooCostly,
)
from contract.images import ImageLimits
from service.errors import WorkerNotStarted
from service.models.limits import LoadLimits
from service.models.repository import (
    EngineConfig,
    LoadedVersion,
    load_version,
)
from service.models.selection import RepositoryConfig
from service.system.usage import private_bytes
from service.workers import launch as launching
from service.workers import proving, wire
from service.workers.factory import RemoteEngine, WorkerConfig, start_children
from service.workers.proving import load_in_child, load_proven
from service.workers.wire import FrameKind
from tests import tinymodel

ENGINE = EngineConfig("cpu")
PATIENCE_S = 60.0
MEMORY_BYTES = 400_000_000
LOADS = {"threads": load_proven, "workers": load_in_child}
both_loads = pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)


def config_of(models_dir: Path, **limits: Any) -> WorkerConfig:
    load_limits = LoadLimits(**({"timeout_s": PATIENCE_S} | limits))
    return WorkerConfig(RepositoryConfig(models_dir, ENGINE), ImageLimits(), "info", load_limits)


def refusal(load: Any, models_dir: Path, **limits: Any) -> ModelError:
    """The error of version 1 of `tiny`."""
    with pytest.raises(ModelError) as caught:
        load(config_of(models_dir, **limits), models_dir, "tiny", 1, ENGINE)
    return caught.value


@pytest.fixture
def fake_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Makes children run these statements once they have sent the given number of LOADING frames."""

    def run(statements: str, n_loading: int = 1) -> None:
        frame = b"".join(wire.pack(FrameKind.LOADING))
        program = (
            "import os, signal, socket, sys, time\n"
            "sock = socket.socket(fileno=int(sys.argv[1]))\n"
            "sock.recv(1 << 20)\n"  # START; a child that dies before it is sent has read nothing
            f"sock.sendall({frame * n_loading!r})\n"
            f"{statements}\n"
        )
        (tmp_path / "fake_child.py").write_text(program, encoding="ascii")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(launching, "_MODULE", "fake_child")

    return run


# Versions that can be served


def test_proven_version_runs_in_this_process(models_dir, started):
    version = load_proven(config_of(models_dir), models_dir, "tiny", 2, ENGINE)

    ours = load_version(models_dir, "tiny", 2, ENGINE)
    assert type(version.engine) is type(ours.engine)
    assert version.manifest_sha256 == ours.manifest_sha256
    assert {one.returncode for one in started} == {-9}  # a second one on a busy machine


def test_version_proven_for_workers_runs_in_children_only(models_dir, started):
    version = load_in_child(config_of(models_dir), models_dir, "tiny", 2, ENGINE)

    ours = load_version(models_dir, "tiny", 2, ENGINE)
    assert (version.key, version.provider) == (("tiny", 2), "cpu")
    assert isinstance(version.engine, RemoteEngine)
    assert version.manifest_sha256 == ours.manifest_sha256
    assert math.isclose(version.golden_difference, ours.golden_difference)
    assert {one.returncode for one in started} == {-9}  # a second one on a busy machine


@both_loads
def test_version_is_proven_once_for_the_same_files(tmp_path, load, started):
    tinymodel.write_version(tmp_path)
    config = config_of(tmp_path)

    assert load(config, tmp_path, "tiny", 1, ENGINE).key == ("tiny", 1)
    before = list(started)
    assert load(config, tmp_path, "tiny", 1, ENGINE).key == ("tiny", 1)
    (tmp_path / "tiny" / "1" / "model.onnx").write_bytes(b"damaged")

    with pytest.raises(VersionCorrupt):
        load(config, tmp_path, "tiny", 1, ENGINE)
    assert started == before != []


def test_version_replaced_after_it_was_proven_is_refused(tmp_path, monkeypatch):
    tinymodel.write_version(tmp_path)

    def replace_then_load(models_dir: Path, *version: Any, **options: Any) -> LoadedVersion:
        (models_dir / "tiny").rename(tmp_path / "before")
        tinymodel.write_version(models_dir, graph_file=tinymodel.endless_graph())
        return load_version(models_dir, *version, **options)

    monkeypatch.setattr(proving, "load_version", replace_then_load)

    with pytest.raises(VersionCorrupt, match="tiny/1: it was replaced"):
        load_proven(config_of(tmp_path), tmp_path, "tiny", 1, ENGINE)


# Versions that cannot


@both_loads
def test_broken_version_is_refused(tmp_path, load, started):
    tinymodel.write_version(tmp_path)
    (tmp_path / "tiny" / "1" / "model.onnx").write_bytes(b"x")

    assert "tiny/1: model.onnx" in str(refusal(load, tmp_path))
    assert {one.returncode is None for one in started} == {False}


@both_loads
def test_child_that_cannot_be_started_is_an_error_with_the_reason(tmp_path, load, monkeypatch):
    tinymodel.write_version(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)

    with pytest.raises(WorkerNotStarted, match="could not be started: Resource temporarily"):
        load(config_of(tmp_path), tmp_path, "tiny", 1, ENGINE)


@both_loads
def test_missing_version_is_refused_without_a_child(tmp_path, load, started):
    error = refusal(load, tmp_path)

    assert isinstance(error, ManifestInvalid)
    assert str(error).startswith("tiny/1: ")
    assert started == []


def bounded_refusal(
    load: Any, models_dir: Path, started: list[subprocess.Popen[bytes]], **limits: Any
) -> str:
    """The message of a refusal that left no process, no thread and no memory."""
    threads, before_bytes = threading.active_count(), private_bytes(os.getpid())

    error = refusal(load, models_dir, **limits)

    assert isinstance(error, VersionTooCostly)
    assert {one.returncode for one in started} == {-9}  # a second one on a busy machine
    while threading.active_count() > threads:  # it ends a moment after its child
        pass
    assert private_bytes(os.getpid()) - before_bytes < 20_000_000
    return str(error)


@both_loads
def test_endless_version_is_killed_at_the_deadline(tmp_path, load, started):
    tinymodel.write_version(tmp_path, graph_file=tinymodel.endless_graph())

    message = bounded_refusal(load, tmp_path, started, timeout_s=2)

    assert message == "tiny/1: loading takes longer than 2 s (CONVSERVE_LOAD_TIMEOUT_S)"


@both_loads
@pytest.mark.parametrize("when", ["load", "run"])
def test_version_that_takes_gigabytes_is_killed_at_the_limit(tmp_path, load, started, when):
    tinymodel.write_version(tmp_path, graph_file=tinymodel.greedy_graph(when))

    message = bounded_refusal(load, tmp_path, started, max_memory_bytes=MEMORY_BYTES)

    assert message == (
        "tiny/1: loading takes more than 381 MiB of memory (CONVSERVE_LOAD_MAX_MEMORY_BYTES)"
    )


@both_loads
def test_version_with_a_huge_sparse_file_is_refused(tmp_path, load, started):
    tinymodel.write_version(tmp_path)
    os.truncate(tmp_path / "tiny" / "1" / "model.onnx", 32 * 2**30)

    error = refusal(load, tmp_path)

    assert isinstance(error, VersionCorrupt)
    assert "tiny/1: model.onnx has 34,359,738,368 bytes" in str(error)
    assert None not in [one.returncode for one in started]


CRASHES = {
    "aborts": ("os.abort()", GraphMismatch, "crashed .Aborted"),
    "segmentation_fault": (
        "os.kill(os.getpid(), signal.SIGSEGV)",
        GraphMismatch,
        "crashed .Segmentation fault",
    ),
    "killed": (
        "os.kill(os.getpid(), signal.SIGKILL)",
        VersionTooCostly,
        "killed, as the kernel does when memory runs out",
    ),
}


@both_loads
@pytest.mark.parametrize("crash", CRASHES)
def test_version_that_ends_its_process_is_refused(models_dir, load, fake_child, crash, started):
    statements, kind, words = CRASHES[crash]
    fake_child(statements)

    with pytest.raises(kind, match=rf"^tiny/1: the process that loaded it .*{words}"):
        load(config_of(models_dir), models_dir, "tiny", 1, ENGINE)

    assert None not in [one.returncode for one in started]


@both_loads
def test_child_that_fails_before_it_loads_is_not_the_versions_fault(models_dir, load, fake_child):
    fake_child("os.abort()", n_loading=0)

    with pytest.raises(WorkerNotStarted, match="was killed by signal 6"):
        load(config_of(models_dir), models_dir, "tiny", 1, ENGINE)


def test_child_that_says_too_often_that_it_loads_breaks_the_protocol(models_dir, fake_child):
    fake_child("signal.pause()", n_loading=2)

    with pytest.raises(WorkerNotStarted, match="sent LOADING instead of READY"):
        load_in_child(config_of(models_dir), models_dir, "tiny", 1, ENGINE)


# The start with workers


def test_children_at_the_start_name_the_version_that_is_endless(tmp_path, started):
    tinymodel.write_version(tmp_path)
    tinymodel.write_version(tmp_path, "zebra", graph_file=tinymodel.endless_graph())

    config = config_of(tmp_path, timeout_s=2)

    with pytest.raises(NothingToServe, match=r"zebra/1: loading takes longer than 2 s"):
        start_children(config, 2, partial(load_in_child, config))

    assert {one.returncode for one in started} == {-9}, "none is left"

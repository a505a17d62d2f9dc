"""Real servers meet versions that never finish or take all memory."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from tests import tinymodel
from tests.e2e.test_signals import AS_PID_1, needs_pid_1

pytestmark = pytest.mark.e2e
RED = tinymodel.picture("red")
TOO_SLOW = "tiny/{}: loading takes longer than 4 s (CONVSERVE_LOAD_TIMEOUT_S)"
TOO_LARGE = "tiny/{}: loading takes more than 286 MiB of memory (CONVSERVE_LOAD_MAX_MEMORY_BYTES)"
# Each graph meets one limit only: on a busy machine the deadline must not come before the memory.
SHORT = {"load_timeout_s": 4}  # good versions load within it, in children that yield to all others
SMALL = {"load_max_memory_bytes": 300_000_000}
GRAPHS = {
    "endless": (tinymodel.endless_graph(), SHORT, TOO_SLOW),
    "gigabytes": (tinymodel.greedy_graph("run"), SMALL, TOO_LARGE),
}
both_kinds = pytest.mark.parametrize("workers", [0, 1], ids=["threads", "workers"])


@both_kinds
@pytest.mark.parametrize("graph", GRAPHS)
def test_start_with_only_a_version_beyond_the_limits_exits_with_the_reason(
    launch, tmp_path, workers, graph
):
    file, limits, reason = GRAPHS[graph]
    tinymodel.write_version(tmp_path / "models", graph_file=file)

    server = launch(models_dir=tmp_path / "models", workers=workers, **limits)

    assert server.exit_code() == 3
    models = tmp_path / "models"
    assert server.stderr() == f"convserve: cannot serve: {models}: {reason.format(1)}\n"
    # In place, the process has begun again, once.
    again = [one for one in server.log if one["message"] == "starting again without a version"]
    assert len(again) == (0 if workers else 1)


@needs_pid_1
def test_start_as_pid_1_begins_again_too(launch, tmp_path):
    file, limits, reason = GRAPHS["endless"]
    tinymodel.write_version(tmp_path / "models", graph_file=file)

    server = launch(models_dir=tmp_path / "models", under=AS_PID_1, **limits)

    assert server.exit_code() == 3
    models = tmp_path / "models"
    assert server.stderr() == f"convserve: cannot serve: {models}: {reason.format(1)}\n"


@both_kinds
@pytest.mark.parametrize("graph", GRAPHS)
def test_start_with_a_newest_version_beyond_the_limits_serves_the_one_before(
    start_server, tmp_path, workers, graph
):
    file, limits, reason = GRAPHS[graph]
    tinymodel.write_version(tmp_path)
    tinymodel.write_version(tmp_path, version=2, graph_file=file)

    server = start_server(models_dir=tmp_path, workers=workers, **limits)

    with server.client() as client:
        listed = client.get("/v1/models").json()["status"][0]
        answer = client.post("/v1/classify", content=RED).json()
    assert (listed["answers"], answer["version"]) == ("1", "1")
    assert listed["failed"] == {"2": reason.format(2)}


@both_kinds
@pytest.mark.parametrize("graph", GRAPHS)
def test_service_survives_a_version_beyond_the_limits_and_adopts_the_next(
    start_server, tmp_path, workers, graph
):
    file, limits, reason = GRAPHS[graph]
    models = tmp_path / "models"
    tinymodel.write_version(models)
    server = start_server(models_dir=models, workers=workers, models_poll_s=0, **limits)
    children = server.workers()

    tinymodel.write_version(models, version=2, graph_file=file)
    server.send_signal(signal.SIGHUP)
    failure = server.wait_for_log("not adopted")
    left = server.workers()
    with server.client() as client:
        answered = client.post("/v1/classify", content=RED).json()["version"]
    shutil.rmtree(models / "tiny" / "2")
    tinymodel.write_version(models, version=3)
    server.send_signal(signal.SIGHUP)
    adopted = server.wait_for_log("adopted")

    assert failure["reason"] == reason.format(2)
    assert (left, answered) == (children, "1")
    assert adopted["versions"] == ["tiny/3"]


def test_service_survives_a_huge_sparse_file(start_server, tmp_path):
    models = tmp_path / "models"
    tinymodel.write_version(models)
    server = start_server(models_dir=models, models_poll_s=0)

    tinymodel.write_version(models, version=2)
    os.truncate(models / "tiny" / "2" / "model.onnx", 32 * 2**30)
    server.send_signal(signal.SIGHUP)

    assert "34,359,738,368 bytes" in server.wait_for_log("not adopted")["reason"]

"""Signals during startup, serving and shutdown, also while a model run never ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import tinymodel
from tests.e2e.server import PATIENCE_S, ROOT, Connection, Server, post
from tests.e2e.test_workers import has_exited
from tests.problems import assert_problem
from tests.waiting import wait_until

WHITE = tinymodel.picture((255, 255, 255))
RED = tinymodel.picture("red")
ENDLESS_CPU_S = 1.0  # only an endless run takes this much processor time here
AS_PID_1 = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")

stopping = pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT], ids=lambda one: one.name
)
with_and_without_workers = pytest.mark.parametrize("workers", [0, 1], ids=["threads", "workers"])


def can_be_pid_1() -> bool:
    try:
        return subprocess.run([*AS_PID_1, "true"], capture_output=True).returncode == 0  # noqa: S603
    except OSError:
        return False


needs_pid_1 = pytest.mark.skipif(not can_be_pid_1(), reason="no right to make PID namespaces")


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A repository whose only version never finishes its golden examples."""
    tinymodel.write_version(tmp_path / "models", graph_file=tinymodel.endless_graph())
    return tmp_path / "models"


@pytest.fixture
def endless_on_white(tmp_path: Path) -> Path:
    """A repository whose only version never answers a white picture."""
    graph = tinymodel.endless_graph(only_on_white=True)
    tinymodel.write_version(tmp_path / "models", graph_file=graph)
    return tmp_path / "models"


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_endless_run(server: Server, pid: int) -> None:
    """Waits until a server process has used more processor time than a normal run takes."""

    def has_runtime() -> bool:
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="ascii", errors="replace")
        return "onnxruntime" in maps

    wait_until(has_runtime)
    began_s = cpu_s(pid)
    wait_until(lambda: cpu_s(pid) - began_s > ENDLESS_CPU_S)
    assert server._process.poll() is None


def loading(launch: Callable[..., Server], workers: int, models_dir: Path) -> Server:
    """Launches a server and waits until it is stuck in loading its models."""
    server = launch(models_dir=models_dir, workers=workers)
    if workers:
        wait_until(lambda: len(server.workers()) == workers)
    wait_for_endless_run(server, server.workers()[0] if workers else server.pid)
    return server


# While models load


@stopping
@with_and_without_workers
def test_signals_while_a_version_is_verified_end_with_zero(launch, endless, number, workers):
    server = loading(launch, workers, endless)
    children = server.workers()

    server.send_signal(number)

    assert (server.exit_code(), server.stderr()) == (0, "")
    assert [line["signal"] for line in server.log if "stopping" in line["message"]] == [number.name]
    for child in children:
        wait_until(lambda child=child: has_exited(child))  # type: ignore[misc]


def test_signals_hangup_while_models_load_does_not_end_it(launch, endless):
    server = loading(launch, 0, endless)

    server.send_signal(signal.SIGHUP)
    server.send_signal(signal.SIGTERM)

    assert (server.exit_code(), server.stderr()) == (0, "")


@stopping
def test_signals_as_soon_as_they_are_blocked_end_with_zero(launch, number):
    server = launch()
    wait_until(lambda: blocks(server.pid, number))

    server.send_signal(number)

    assert (server.exit_code(), server.stderr()) == (0, "")


def blocks(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    mask = status.partition("SigBlk:")[2].split()[0]
    return bool(int(mask, 16) >> (number - 1) & 1)


@needs_pid_1
@stopping
def test_signals_while_models_load_end_pid_1_with_zero(launch, endless, number):
    server = launch(models_dir=endless, under=AS_PID_1)
    wait_until(lambda: len(server.workers()) == 1)
    (pid_1,) = server.workers()
    wait_for_endless_run(server, pid_1)

    os.kill(pid_1, number)

    assert (server.exit_code(), server.stderr()) == (0, "")


# While it serves


@needs_pid_1
@with_and_without_workers
def test_signals_end_a_serving_pid_1_with_zero(start_server, workers):
    server = start_server(under=AS_PID_1, drain_s=0, workers=workers)
    (pid_1,) = server.workers()

    os.kill(pid_1, signal.SIGTERM)

    assert (server.exit_code(), server.stderr()) == (0, "")


@pytest.fixture
def stuck(
    start_server: Callable[..., Server], endless_on_white: Path
) -> Iterator[Callable[..., tuple[Server, Connection]]]:
    """Starts a server with an endless run in progress. Returns it and the waiting connection."""
    with ExitStack() as stack:

        def make(**settings: object) -> tuple[Server, Connection]:
            server = start_server(models_dir=endless_on_white, **settings)
            connection = stack.enter_context(server.connect())
            connection.send(post(WHITE))
            workers = server.workers()
            wait_for_endless_run(server, workers[0] if workers else server.pid)
            return server, connection

        yield make


@pytest.mark.faults
@stopping
@with_and_without_workers
def test_signals_during_an_endless_run_answer_and_end_with_zero(stuck, number, workers):
    server, connection = stuck(drain_s=0, grace_s=1, workers=workers)
    children = server.workers()

    server.send_signal(number)
    answer = connection.response()

    assert_problem(answer, 503, "draining")
    assert server.exit_code() == 0
    assert (
        "terminate called" not in server.stderr()
    )  # the runtime may log that a run was interrupted
    for child in children:
        wait_until(lambda child=child: has_exited(child))  # type: ignore[misc]


@pytest.mark.faults
@with_and_without_workers
def test_signals_second_one_during_an_endless_run_exits_at_once(stuck, workers):
    server, _ = stuck(drain_s=600, grace_s=600, workers=workers)
    children = server.workers()

    server.send_signal(signal.SIGTERM)
    server.wait_for_log("stopping")
    server.send_signal(signal.SIGTERM)

    assert (server.exit_code(), server.stderr()) == (0, "")
    for child in children:
        wait_until(lambda child=child: has_exited(child))  # type: ignore[misc]


@pytest.mark.faults
@with_and_without_workers
def test_signals_while_an_endless_version_is_adopted_end_with_zero(start_server, tmp_path, workers):
    models = tmp_path / "models"
    tinymodel.write_version(models)
    server = start_server(models_dir=models, models_poll_s=0, drain_s=0, workers=workers)
    serving = server.workers()
    tinymodel.write_version(models, version=2, graph_file=tinymodel.endless_graph())

    server.send_signal(signal.SIGHUP)
    wait_until(lambda: len(every_child(server.pid)) == len(serving) + 1)
    children = every_child(server.pid)
    wait_for_endless_run(server, (children - set(serving)).pop())
    server.send_signal(signal.SIGTERM)

    assert (server.exit_code(), server.stderr()) == (0, "")
    for child in children:
        wait_until(lambda child=child: has_exited(child))  # type: ignore[misc]


def every_child(pid: int) -> set[int]:
    """The child processes of all threads of a process."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(one) for text in lists for one in text.read_text(encoding="ascii").split()}


@with_and_without_workers
def test_signals_hangup_adopts_a_published_version_at_once(start_server, tmp_path, workers):
    models = tmp_path / "models"
    tinymodel.write_version(models)
    server = start_server(models_dir=models, models_poll_s=0, workers=workers)
    tinymodel.write_version(models, version=2)

    server.send_signal(signal.SIGHUP)

    assert server.wait_for_log("polling the model repository")["signal"] == "SIGHUP"
    assert server.wait_for_log("adopted")["versions"] == ["tiny/2"]
    with server.client() as client:
        assert client.post("/v1/classify", content=RED).json()["version"] == "2"


# Other commands


@pytest.fixture
def not_ignored() -> Iterator[None]:
    """Lets children take SIGINT, which a shell ignores in its background jobs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("not_ignored")
def test_signals_interrupt_ends_another_command_silently(endless):
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "convserve", "verify", "--models-dir", str(endless)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        wait_until(lambda: any(cpu_s(pid) > ENDLESS_CPU_S for pid in children_of(process.pid)))
        (child,) = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, output) == (-signal.SIGINT, ("", ""))
    wait_until(lambda: has_exited(child))

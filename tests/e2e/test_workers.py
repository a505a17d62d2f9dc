"""Worker processes that crash, stop, hang or leak memory in a real service under load."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import tinymodel
from tests.e2e.hooks import sitecustomize as hooks
from tests.e2e.server import ROOT, Server
from tests.e2e.test_lifecycle import post_until_closed
from tests.problems import assert_problem
from tests.waiting import wait_until

RED = tinymodel.picture("red")
HOOKS = Path(__file__).parent / "hooks"
N_CLIENTS = 8
N_BATCH = 8  # the most pictures that a worker holds at once


@dataclass(frozen=True)
class Result:
    """The result of one request under load."""

    at_s: float
    took_s: float
    status: int
    code: str
    retry_after: str | None


class Load:
    """Clients that send requests without pause, and their results."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.results: list[Result] = []
        self.done = threading.Event()

    def ask(self) -> None:
        with self.server.client() as client:
            while not self.done.is_set():
                at_s = time.monotonic()
                response = client.post("/v1/classify", content=RED)
                took_s = time.monotonic() - at_s
                code = "" if response.status_code == 200 else response.json()["code"]
                retry_after = response.headers.get("retry-after")
                self.results.append(Result(at_s, took_s, response.status_code, code, retry_after))

    def wait_for_answers(self, count: int) -> None:
        """Waits until `count` more requests have been answered."""
        target = len(self.results) + count
        wait_until(lambda: len(self.results) >= target)

    @property
    def failed(self) -> list[Result]:
        return [one for one in self.results if one.status != 200]


@contextmanager
def load(server: Server, clients: int = N_CLIENTS) -> Iterator[Load]:
    made = Load(server)
    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(made.ask) for _ in range(clients)]
        try:
            made.wait_for_answers(50)
            yield made
        finally:
            made.done.set()
        for one in running:
            one.result()


def wait_for_workers(server: Server, count: int = 2) -> None:
    wait_until(lambda: server.metric("convserve_lanes") == count)


def wait_for_lost_worker(server: Server) -> dict[str, Any]:
    """Waits until a lost worker has been replaced. Returns the log's facts on its end."""
    line = server.wait_for_log("worker lost")
    ended = server.wait_for_log("worker ended")
    assert ended["pid"] == line["pid"]
    wait_for_workers(server)
    return {**ended, **line}


def wait_for_replaced_worker(server: Server) -> dict[str, Any]:
    """Waits until a worker has been replaced in an orderly way. Returns the log's facts on its end."""
    line = server.wait_for_log("a lane is replaced")
    server.wait_for_log("worker ready")
    return {**server.wait_for_log("worker ended"), "reason": line["reason"]}


def restarts(server: Server, reason: str) -> float:
    return server.metric(f'convserve_lane_restarts_total{{reason="{reason}"}}')


def has_exited(pid: int) -> bool:
    """True once a process has exited, even if its parent has not collected its status (a zombie)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


@pytest.fixture
def start_workers(start_server: Callable[..., Server]) -> Callable[..., Server]:
    """Starts a server with two workers and the given settings."""

    def start(**settings: object) -> Server:
        server = start_server(**({"workers": 2, "lanes": ""} | settings))
        wait_for_workers(server, int(str(settings.get("workers", 2))))
        return server

    return start


def picture_of_size(size: tuple[int, int]) -> bytes:
    """A picture whose size makes the hooks misbehave."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (255, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


# The same answers


def test_workers_answer_as_one_process_does_bit_for_bit(start_server, start_workers):
    one, two = start_server(), start_workers()
    pictures = [tinymodel.picture((40 * n, 255 - 30 * n, 7 * n), 8 + 5 * n) for n in range(6)]
    pictures += [RED[:40], b"GIF89a", b"no picture", b""]

    def ask(server: Server) -> list[Any]:
        with server.client() as client:
            answers = [client.post("/v1/classify?top_k=3", content=one) for one in pictures]
            answers.append(client.post("/v1/classify", files=[("a", RED), ("b", b"x")]))
            answers.append(client.get("/v1/models"))
        documents = [(answer.status_code, answer.json()) for answer in answers]
        for _, document in documents:
            document.pop("request_id", None)
            for detail in document.get("details", []):
                detail.pop("load_s", None)
        return documents

    assert ask(one) == ask(two)


def test_workers_front_runs_no_model(start_workers):
    server = start_workers()

    maps = Path(f"/proc/{server.pid}/maps").read_text(encoding="ascii", errors="replace")
    assert "onnxruntime" not in maps
    assert len(server.workers()) == 2
    for pid in server.workers():
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="ascii")) == 800


def cpu_s_by_thread(pid: int) -> dict[str, float]:
    """Processor time of each thread of a process, by thread id."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
        found[task.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two cores")
def test_workers_lone_picture_uses_all_cores(start_workers):
    server = start_workers(models_dir=ROOT / "models", workers=1)
    picture = (ROOT / "examples" / "cat.jpg").read_bytes()
    (pid,) = server.workers()
    before = cpu_s_by_thread(pid)
    with server.client() as client:
        for _ in range(40):
            assert client.post("/v1/classify", content=picture).status_code == 200
    after = cpu_s_by_thread(pid)
    spent = sorted(after[name] - before.get(name, 0.0) for name in after)

    assert spent[-2] > spent[-1] / 4 > 0


# Killed


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_workers_killed_one_loses_only_its_own_pictures(start_workers, number):
    server = start_workers()
    with load(server) as clients:
        victim = server.workers()[0]
        os.kill(victim, number)
        line = wait_for_lost_worker(server)
        clients.wait_for_answers(50)

    assert (line["pid"], line["signal"], line["reason"]) == (victim, number.name, "exited")
    assert len(clients.failed) == line["pictures_lost"] <= N_BATCH
    for one in clients.failed:
        assert (one.status, one.code, one.retry_after) == (503, "worker_lost", "1")
        assert one.took_s < 1
    assert restarts(server, "exited") == 1


@pytest.mark.faults
def test_workers_killed_again_and_again_leave_nothing_behind(start_workers):
    server = start_workers()
    with load(server, 2) as clients:
        before = footprint(server)
        for _ in range(4):
            os.kill(server.workers()[0], signal.SIGKILL)
            wait_for_lost_worker(server)
            clients.wait_for_answers(10)
        wait_until(lambda: footprint(server) == before)  # connections close a little later

    assert len(server.workers()) == 2


def footprint(server: Server) -> list[int]:
    """The front's numbers of file descriptors and threads."""
    return [len(list(Path(f"/proc/{server.pid}/{what}").iterdir())) for what in ("fd", "task")]


@pytest.mark.faults
def test_workers_all_killed_answered_as_soon_as_one_is_back(start_workers):
    server = start_workers()
    with server.client() as client:
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: client.get("/readyz").status_code == 503)
        alive, answer = client.get("/livez"), client.post("/v1/classify", content=RED)
        ready = client.get("/readyz")

    assert [one.status_code for one in (alive, answer, ready)] == [200, 200, 200]


@pytest.mark.faults
def test_workers_decoder_crash_fails_only_that_worker(start_workers):
    server = start_workers(hooks=HOOKS)
    with load(server, 4) as clients, server.client() as client:
        answer = client.post("/v1/classify", content=picture_of_size(hooks.CRASH))
        line = wait_for_lost_worker(server)
        after = client.post("/v1/classify", content=RED)

    assert_problem(answer, 503, "worker_lost")
    assert answer.headers["retry-after"] == "1"
    assert (line["signal"], line["pictures_lost"]) == ("SIGSEGV", len(clients.failed) + 1)
    assert {one.code for one in clients.failed} <= {"worker_lost"}
    assert after.status_code == 200


def test_workers_exit_when_the_front_is_killed(start_workers):
    server = start_workers()
    workers = server.workers()
    os.kill(workers[0], signal.SIGSTOP)  # cannot notice that the front is gone

    server.send_signal(signal.SIGKILL)

    for pid in workers:
        wait_until(lambda pid=pid: has_exited(pid))  # type: ignore[misc]
    assert all(map(has_exited, workers))


# Hung


@pytest.mark.faults
def test_workers_stopped_one_is_replaced_before_any_deadline(start_workers):
    server = start_workers(request_timeout_s=60)
    with load(server) as clients:
        victim = server.workers()[0]
        os.kill(victim, signal.SIGSTOP)
        stopped_s = time.monotonic()
        line = server.wait_for_log("worker lost")
        noticed_s = time.monotonic() - stopped_s
        wait_for_workers(server)
        clients.wait_for_answers(50)

    assert (line["pid"], line["reason"]) == (victim, "stopped")
    assert noticed_s < 3
    assert {(one.status, one.code) for one in clients.failed} <= {(503, "worker_lost")}
    assert len(clients.failed) == line["pictures_lost"] <= N_BATCH
    assert restarts(server, "stopped") == 1


@pytest.mark.faults
@pytest.mark.parametrize("size", [hooks.HANG, hooks.BLOCK], ids=["hang", "hold_the_lock"])
def test_workers_decoder_hang_fails_only_that_worker(start_workers, size):
    server = start_workers(hooks=HOOKS)
    with server.client() as client:
        headers = {"x-request-timeout-ms": "1000"}
        answer = client.post("/v1/classify", content=picture_of_size(size), headers=headers)
        meanwhile = [client.post("/v1/classify", content=RED).status_code for _ in range(10)]
        line = wait_for_lost_worker(server)
        after = [client.post("/v1/classify", content=RED).status_code for _ in range(10)]

    assert_problem(answer, 504, "deadline_exceeded")
    assert (line["reason"], line["signal"]) == ("overdue", "SIGKILL")
    assert (meanwhile, after) == ([200] * 10, [200] * 10)
    assert restarts(server, "overdue") == 1


@pytest.mark.faults
def test_workers_hung_one_under_load_loses_only_its_own_pictures(start_workers):
    server = start_workers(hooks=HOOKS)
    with load(server) as clients, server.client() as client:
        headers = {"x-request-timeout-ms": "1000"}
        answer = client.post("/v1/classify", content=picture_of_size(hooks.HANG), headers=headers)
        line = wait_for_lost_worker(server)
        clients.wait_for_answers(50)

    assert_problem(answer, 504, "deadline_exceeded")
    assert line["reason"] == "overdue"
    assert {(one.status, one.code) for one in clients.failed} <= {(503, "worker_lost")}
    assert len(clients.failed) == line["pictures_lost"] < N_BATCH


@pytest.mark.faults
def test_workers_all_stopped_are_replaced_and_readiness_says_so(start_workers):
    server = start_workers()
    workers = server.workers()
    with server.client() as client:
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: client.get("/readyz").status_code == 503)
        alive, models = client.get("/livez"), client.get("/v1/models")
        answer = client.post("/v1/classify", content=RED)
        wait_for_workers(server)
        ready = client.get("/readyz")

    assert [one.status_code for one in (alive, models, answer, ready)] == [200] * 4
    assert not set(server.workers()) & set(workers)


@pytest.mark.faults
def test_workers_service_suspended_and_resumed_as_a_whole_goes_on(start_workers):
    # As with Ctrl-Z and fg: the first process to resume must not take the others for stopped.
    server = start_workers()
    workers = server.workers()
    for pid in (*workers, server.pid):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1)
    for pid in (server.pid, *workers):
        os.kill(pid, signal.SIGCONT)
    time.sleep(1)  # a few health checks
    with server.client() as client:
        answer = client.post("/v1/classify", content=RED)

    assert (answer.status_code, server.workers()) == (200, workers)


# Replaced without a loss


@pytest.mark.faults
def test_workers_leaking_one_is_replaced_without_a_loss(start_workers):
    server = start_workers(hooks=HOOKS, worker_max_memory_bytes=200_000_000)
    with load(server, 4) as clients, server.client() as client:
        answer = client.post("/v1/classify", content=picture_of_size(hooks.LEAK))
        line = wait_for_replaced_worker(server)
        clients.wait_for_answers(50)

    assert answer.status_code == 200
    assert (line["reason"], line["exit_status"], clients.failed) == ("memory", 0, [])
    assert restarts(server, "memory") == 1
    assert len(server.workers()) == 2


@pytest.mark.faults
@pytest.mark.parametrize("n_clients", [4, 0], ids=["under_load", "idle"])
def test_workers_terminated_one_is_replaced_without_a_loss(start_workers, n_clients):
    server = start_workers()
    victim = server.workers()[0]
    with load(server, n_clients) if n_clients else nullcontext() as clients:
        os.kill(victim, signal.SIGTERM)
        line = wait_for_replaced_worker(server)
        if clients:
            clients.wait_for_answers(50)

    assert (line["pid"], line["reason"], line["exit_status"]) == (victim, "terminated", 0)
    assert clients is None or clients.failed == []
    assert restarts(server, "terminated") == 1
    assert victim not in server.workers()


# The end of the service


@pytest.mark.parametrize("whole_group", [False, True], ids=["front", "everything"])
def test_workers_service_terminated_under_load_answers_everything(start_workers, whole_group):
    # Service managers signal every process of a service. The workers must outlast the drain.
    server = start_workers(drain_s=1)
    workers = server.workers()

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(post_until_closed, server) for _ in range(4)]
        server.wait_for_log("request")
        for pid in workers if whole_group else ():
            os.kill(pid, signal.SIGTERM)
        server.send_signal(signal.SIGTERM)
        statuses = [status for client in clients for status in client.result()]

    assert set(statuses) == {200}
    assert (server.exit_code(), server.stderr()) == (0, "")
    assert all(has_exited(pid) for pid in workers)


def test_workers_idle_service_interrupted_from_a_terminal_exits_with_zero(start_workers):
    server = start_workers(drain_s=600)
    for pid in (*server.workers(), server.pid):
        os.kill(pid, signal.SIGINT)

    assert (server.exit_code(), server.stderr()) == (0, "")


# Starts and versions


def test_workers_version_that_cannot_be_served_exits_with_three(launch, tmp_path):
    tinymodel.write_version(tmp_path / "models")
    (tmp_path / "models" / "tiny" / "1" / "model.onnx").write_bytes(b"x")
    server = launch(models_dir=tmp_path / "models", workers=2, lanes="")

    assert server.exit_code() == 3
    assert "tiny/1" in server.stderr()


def test_workers_version_that_crashes_them_at_the_start_exits_with_three(
    launch, tmp_path, monkeypatch
):
    write_crashing_version(tmp_path / "models", 1, monkeypatch)
    server = launch(models_dir=tmp_path / "models", workers=2, lanes="", hooks=HOOKS)

    assert server.exit_code() == 3
    assert "tiny/1: the process that loaded it crashed (Segmentation fault)" in server.stderr()


def write_crashing_version(models: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes a version whose first golden example crashes the decoder, as a graph might the runtime."""
    with monkeypatch.context() as patch:
        patch.setattr(tinymodel, "picture", lambda _: picture_of_size(hooks.CRASH))
        tinymodel.write_version(models, version=number)


def test_workers_adopt_new_versions_under_load_without_a_loss(start_workers, tmp_path):
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    tinymodel.write_version(models)
    server = start_workers(models_dir=models, models_poll_s=0.05)
    first = server.workers()
    with load(server, 4) as clients:
        tinymodel.write_version(elsewhere, version=2)
        (elsewhere / "tiny" / "2").rename(models / "tiny" / "2")
        adopted = server.wait_for_log("adopted")
        clients.wait_for_answers(50)
        for pid in first:
            wait_until(lambda pid=pid: has_exited(pid))  # type: ignore[misc]
    with server.client() as client:
        version = client.post("/v1/classify", content=RED).json()["version"]

    assert (adopted["versions"], version, clients.failed) == (["tiny/2"], "2", [])
    assert len(server.workers()) == 2


@pytest.mark.parametrize("workers", [0, 2], ids=["threads", "workers"])
def test_workers_version_that_crashes_its_process_is_not_adopted(
    start_server, tmp_path, monkeypatch, workers
):
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    tinymodel.write_version(models)
    server = start_server(models_dir=models, models_poll_s=0.05, hooks=HOOKS, workers=workers)
    with load(server, 4) as clients:
        write_crashing_version(elsewhere, 2, monkeypatch)
        (elsewhere / "tiny" / "2").rename(models / "tiny" / "2")
        refused = server.wait_for_log("not adopted")
        clients.wait_for_answers(50)

    assert "the process that loaded it crashed (Segmentation fault)" in refused["reason"]
    assert clients.failed == []

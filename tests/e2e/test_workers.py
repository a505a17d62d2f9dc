"""Worker processes that are killed, stopped, hung and leaking, in a real service under load."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import tinymodel
from tests.e2e.hooks import sitecustomize as hooks
from tests.e2e.server import PATIENCE_S, Server
from tests.e2e.test_lifecycle import ask_until_told_to_leave
from tests.problems import assert_problem

RED = tinymodel.picture("red")
HOOKS = Path(__file__).parent / "hooks"
N_CLIENTS = 8
START_S = 8.0
"""A worker starts within a second; this is for machines that do other things meanwhile."""


@dataclass(frozen=True)
class Asked:
    """One request of a client under load."""

    at_s: float
    took_s: float
    status: int
    code: str
    retry_after: str | None


class Load:
    """Clients that ask without pause, and what they got."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.asked: list[Asked] = []
        self.done = threading.Event()

    def ask(self) -> None:
        with self.server.client() as client:
            while not self.done.is_set():
                at_s = time.monotonic()
                response = client.post("/v1/classify", content=RED)
                took_s = time.monotonic() - at_s
                code = "" if response.status_code == 200 else response.json()["code"]
                retry_after = response.headers.get("retry-after")
                self.asked.append(Asked(at_s, took_s, response.status_code, code, retry_after))

    def wait_for_answers(self, count: int) -> None:
        """Returns when so many more requests have been answered."""
        wanted = len(self.asked) + count
        wait_until(lambda: len(self.asked) >= wanted)

    @property
    def failed(self) -> list[Asked]:
        return [one for one in self.asked if one.status != 200]


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


def wait_until(happened: Callable[[], bool], within_s: float = PATIENCE_S) -> float:
    """Returns how long it took."""
    started_s = time.monotonic()
    while not happened():
        assert time.monotonic() - started_s < within_s, "it did not happen in time"
        time.sleep(0.005)
    return time.monotonic() - started_s


def live(server: Server) -> float:
    return server.metric('convserve_workers{state="live"}')


def replaced(server: Server) -> dict[str, Any]:
    """The log's line on a worker that was replaced, when its successor is there."""
    line = server.wait_for_log("worker replaced")
    wait_until(lambda: live(server) == 2, START_S)
    return line


def gone(pid: int) -> bool:
    """True once a process has exited, whoever has to collect its status."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


@pytest.fixture
def start_workers(start_server: Callable[..., Server]) -> Callable[..., Server]:
    """Starts servers with two workers; takes settings."""
    return lambda **settings: start_server(**({"workers": 2} | settings))


def shaped(size: tuple[int, int]) -> bytes:
    """A picture that the hooks act on."""
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


def test_workers_front_runs_no_model_and_workers_have_their_share(start_workers):
    server = start_workers(lanes="")

    maps = Path(f"/proc/{server.pid}/maps").read_text(encoding="ascii", errors="replace")
    assert "onnxruntime" not in maps
    assert len(server.workers()) == 2
    for pid in server.workers():
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text(encoding="ascii")) == 800


# Killed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_workers_killed_one_costs_only_what_it_had_in_flight(start_workers, number):
    server = start_workers()
    with load(server) as clients:
        victim = server.workers()[0]
        os.kill(victim, number)
        line = replaced(server)
        clients.wait_for_answers(50)

    assert (line["pid"], line["signal"], line["reason"]) == (victim, number.name, "exited")
    assert len(clients.failed) == line["pictures_lost"] <= N_CLIENTS
    for one in clients.failed:
        assert (one.status, one.code, one.retry_after) == (503, "worker_lost", "1")
        assert one.took_s < 1
    assert server.metric('convserve_worker_restarts_total{reason="exited"}') == 1


def test_workers_killed_again_and_again_leave_nothing_behind(start_workers):
    server = start_workers()
    with load(server, 2) as clients:
        before = footprint(server)
        for _ in range(4):
            os.kill(server.workers()[0], signal.SIGKILL)
            replaced(server)
            clients.wait_for_answers(10)
        wait_until(lambda: footprint(server) == before)  # connections close a little later

    assert len(server.workers()) == 2


def footprint(server: Server) -> list[int]:
    """How many descriptors and threads the front has."""
    return [len(list(Path(f"/proc/{server.pid}/{what}").iterdir())) for what in ("fd", "task")]


def test_workers_all_killed_answered_as_soon_as_one_is_back(start_workers):
    server = start_workers()
    with server.client() as client:
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: client.get("/readyz").status_code == 503, 1)
        alive, answer = client.get("/livez"), client.post("/v1/classify", content=RED)
        ready = client.get("/readyz")

    assert [one.status_code for one in (alive, answer, ready)] == [200, 200, 200]


def test_workers_decoder_that_crashes_hurts_nobody_elsewhere(start_workers):
    server = start_workers(hooks=HOOKS)
    with load(server, 4) as clients, server.client() as client:
        answer = client.post("/v1/classify", content=shaped(hooks.CRASH))
        line = replaced(server)
        after = client.post("/v1/classify", content=RED)

    assert_problem(answer, 503, "worker_lost")
    assert answer.headers["retry-after"] == "1"
    assert (line["signal"], line["pictures_lost"]) == ("SIGSEGV", len(clients.failed) + 1)
    assert {one.code for one in clients.failed} <= {"worker_lost"}
    assert after.status_code == 200


def test_workers_exit_when_the_front_is_killed(start_workers):
    server = start_workers()
    workers = server.workers()
    os.kill(workers[0], signal.SIGSTOP)  # one that cannot notice

    server.send_signal(signal.SIGKILL)

    for pid in workers:
        wait_until(lambda pid=pid: gone(pid), 5)  # type: ignore[misc]
    assert all(map(gone, workers))


# Hung


def test_workers_stopped_one_has_its_pictures_answered_and_is_replaced(start_workers):
    server = start_workers(request_timeout_s=1)
    with load(server) as clients:
        os.kill(server.workers()[0], signal.SIGSTOP)
        stopped_s = time.monotonic()
        line = server.wait_for_log("worker replaced")
        noticed_s = time.monotonic() - stopped_s
        wait_until(lambda: live(server) == 2, START_S)
        clients.wait_for_answers(50)

    assert (line["reason"], line["signal"]) == ("overdue", "SIGKILL")
    assert noticed_s < 1 + 1 + 1
    assert {(one.status, one.code) for one in clients.failed} == {(504, "deadline_exceeded")}
    assert len(clients.failed) <= N_CLIENTS
    assert max(one.took_s for one in clients.failed) < 1.5


def test_workers_silent_one_is_replaced_before_any_deadline(start_workers):
    server = start_workers(request_timeout_s=60, worker_silent_s=1)
    with load(server, 4) as clients:
        os.kill(server.workers()[0], signal.SIGSTOP)
        line = replaced(server)
        clients.wait_for_answers(50)

    assert line["reason"] == "silent"
    assert {(one.status, one.code) for one in clients.failed} <= {(503, "worker_lost")}
    assert len(clients.failed) == line["pictures_lost"]


@pytest.mark.parametrize("size", [hooks.HANG, hooks.BLOCK], ids=["hang", "hold_the_lock"])
def test_workers_decoder_that_never_returns_hurts_nobody_elsewhere(start_workers, size):
    server = start_workers(hooks=HOOKS, request_timeout_s=1)
    with server.client() as client:
        answer = client.post("/v1/classify", content=shaped(size))
        line = replaced(server)
        after = [client.post("/v1/classify", content=RED).status_code for _ in range(10)]

    assert_problem(answer, 504, "deadline_exceeded")
    assert (line["reason"], after) == ("overdue", [200] * 10)


def test_workers_all_stopped_make_readiness_false_and_are_used_again(start_workers):
    server = start_workers()
    workers = server.workers()
    with server.client() as client:
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        noticed_s = wait_until(lambda: client.get("/readyz").status_code == 503, 3)
        alive, models = client.get("/livez"), client.get("/v1/models")
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        wait_until(lambda: client.get("/readyz").status_code == 200, 3)
        answer = client.post("/v1/classify", content=RED)

    assert noticed_s < 2
    assert [one.status_code for one in (alive, models, answer)] == [200, 200, 200]
    assert server.workers() == workers


# Replaced without a loss


def test_workers_leaking_one_is_replaced_without_a_loss(start_workers):
    server = start_workers(hooks=HOOKS, worker_max_memory_bytes=200_000_000)
    with load(server, 4) as clients, server.client() as client:
        answer = client.post("/v1/classify", content=shaped(hooks.LEAK))
        line = replaced(server)
        clients.wait_for_answers(50)

    assert answer.status_code == 200
    assert (line["reason"], line["pictures_lost"], line["exit_status"]) == ("memory", 0, 0)
    assert clients.failed == []


def test_workers_terminated_one_is_replaced_without_a_loss(start_workers):
    server = start_workers()
    with load(server, 4) as clients:
        os.kill(server.workers()[0], signal.SIGTERM)
        line = replaced(server)
        clients.wait_for_answers(50)

    assert (line["reason"], clients.failed) == ("terminated", [])


# The end of the service


@pytest.mark.parametrize("whole_group", [False, True], ids=["front", "everything"])
def test_workers_service_terminated_under_load_answers_everything(start_workers, whole_group):
    """Service managers signal every process of a service; the workers must outlast the drain."""
    server, told = start_workers(drain_s=1), threading.Event()
    workers = server.workers()
    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask_until_told_to_leave, server, told) for _ in range(4)]
        server.wait_for_log("request")
        for pid in workers if whole_group else ():
            os.kill(pid, signal.SIGTERM)
        server.send_signal(signal.SIGTERM)
        statuses = [status for client in clients for status in client.result()]

    assert set(statuses) == {200}
    assert (server.exit_code(), server.stderr()) == (0, "")
    assert all(gone(pid) for pid in workers)


def test_workers_idle_service_interrupted_from_a_terminal_exits_with_zero(start_workers):
    server = start_workers(drain_s=600)
    for pid in (*server.workers(), server.pid):
        os.kill(pid, signal.SIGINT)

    assert (server.exit_code(), server.stderr()) == (0, "")


# Starts and versions


def test_workers_version_that_cannot_be_served_exits_with_three(launch, tmp_path):
    tinymodel.write_version(tmp_path / "models")
    (tmp_path / "models" / "tiny" / "1" / "model.onnx").write_bytes(b"x")
    server = launch(models_dir=tmp_path / "models", workers=2)

    assert server.exit_code() == 3
    assert "tiny/1" in server.stderr()


def test_workers_version_that_crashes_them_at_the_start_exits_with_three(
    launch, tmp_path, monkeypatch
):
    write_crashing_version(tmp_path / "models", 1, monkeypatch)
    server = launch(models_dir=tmp_path / "models", workers=2, hooks=HOOKS)

    assert server.exit_code() == 3
    assert "signal 11" in server.stderr()


def write_crashing_version(models: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first golden example makes the decoder crash, as a graph might the runtime."""
    with monkeypatch.context() as patch:
        patch.setattr(tinymodel, "picture", lambda _: shaped(hooks.CRASH))
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
            wait_until(lambda pid=pid: gone(pid))  # type: ignore[misc]
    with server.client() as client:
        version = client.post("/v1/classify", content=RED).json()["version"]

    assert (adopted["versions"], version, clients.failed) == (["tiny/2"], "2", [])
    assert len(server.workers()) == 2


def test_workers_version_that_crashes_them_is_not_adopted(start_workers, tmp_path, monkeypatch):
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    tinymodel.write_version(models)
    server = start_workers(models_dir=models, models_poll_s=0.05, hooks=HOOKS)
    with load(server, 4) as clients:
        write_crashing_version(elsewhere, 2, monkeypatch)
        (elsewhere / "tiny" / "2").rename(models / "tiny" / "2")
        refused = server.wait_for_log("not adopted")
        clients.wait_for_answers(50)

    assert "signal 11" in refused["reason"]
    assert clients.failed == []

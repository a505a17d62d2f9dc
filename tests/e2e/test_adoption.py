"""New versions are published while the service is under load."""

from __future__ import annotations

import shutil
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contract.repository.publishing import place_version
from contract.versions import read_version
from service.system.usage import resident_bytes
from tests import tinymodel
from tests.e2e.server import ROOT, Server, running_server
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e
RED = tinymodel.picture("red")
N_CLIENTS = 4
N_REPLACED = 10
MAX_GROWTH = 1.25  # one version that is kept adds 25 to 30%


def post_until(
    done: threading.Event, server: Server, begun: threading.Barrier
) -> Counter[tuple[int, str, str]]:
    """Posts without pause. Counts each status, version and first label."""
    seen: Counter[tuple[int, str, str]] = Counter()
    with server.client() as client:
        begun.wait()
        while not done.is_set():
            response = client.post("/v1/classify", content=RED)
            document = response.json()
            first = document.get("predictions", [{}])[0].get("label", document.get("code"))
            seen[response.status_code, document.get("version", ""), first] += 1
    return seen


def test_adoption_under_load_loses_no_request(tmp_path):
    models, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    tinymodel.write_version(models)
    done, begun = threading.Event(), threading.Barrier(N_CLIENTS + 1)
    with running_server(models_dir=models, models_poll_s=0.05) as server:
        with ThreadPoolExecutor(N_CLIENTS) as pool:
            clients = [pool.submit(post_until, done, server, begun) for _ in range(N_CLIENTS)]
            begun.wait()
            try:
                for number in range(2, 6):
                    tinymodel.write_version(elsewhere, version=number)
                    shutil.move(elsewhere / "tiny" / str(number), models / "tiny" / str(number))
                    adopted = server.wait_for_log("adopted")
                    assert adopted["versions"] == [f"tiny/{number}"]
            finally:
                done.set()
            answers = sum((client.result() for client in clients), Counter())
        with server.client() as client:
            last = client.post("/v1/classify", content=RED).json()["version"]

    assert {(status, label) for status, _, label in answers} == {(200, "red")}
    assert len({version for _, version, _ in answers}) > 1
    assert last == "5"


def usage(server: Server) -> tuple[int, int, int]:
    """Resident bytes, threads and descriptors of the service and its workers together."""
    pids = [server.pid, *server.workers()]
    threads, descriptors = (
        sum(len(list(Path("/proc", str(pid), one).iterdir())) for pid in pids)
        for one in ("task", "fd")
    )
    return sum(map(resident_bytes, pids)), threads, descriptors


def exceeds(now: Sequence[float], limits: Sequence[float]) -> bool:
    return any(one > limit for one, limit in zip(now, limits, strict=True))


@pytest.mark.faults
@pytest.mark.parametrize("workers", [0, 1], ids=["threads", "workers"])
def test_replaced_versions_give_their_memory_back(tmp_path, workers):
    name = "efficientnet_lite0"
    (newest,) = (ROOT / "models" / name).iterdir()
    source = read_version(ROOT / "models", name, int(newest.name))

    def publish(number: int) -> None:
        manifest = source.manifest.model_copy(update={"version": number})
        place_version(tmp_path, manifest, source.contents, lambda _: None)

    publish(1)
    with running_server(models_dir=tmp_path, models_poll_s=0, workers=workers) as server:
        memory, *others = usage(server)
        limits = (MAX_GROWTH * memory, *others)
        for number in range(2, N_REPLACED + 2):
            publish(number)
            server.send_signal(signal.SIGHUP)
            server.wait_for_log("adopted")
            if workers:
                server.wait_for_log("worker ended")  # of the version before

            # It gives back the rest a moment later. Nothing happens in the service meanwhile that would
            # start a garbage collection.
            wait_until(lambda: not exceeds(usage(server), limits))

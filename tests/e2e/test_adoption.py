"""New versions are published while the service is under load."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import tinymodel
from tests.e2e.server import Server, running_server

pytestmark = pytest.mark.e2e
RED = tinymodel.picture("red")
N_CLIENTS = 4


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

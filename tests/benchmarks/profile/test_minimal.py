from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from benchmarks.profile.minimal import Front, waiting

pytestmark = pytest.mark.anyio


def sizes(files: list[bytes]) -> np.ndarray:
    return np.array([[len(file), len(files)] for file in files], np.float32)


async def test_front_every_file_gets_its_own_row():
    front = Front([sizes, sizes], most=4)

    rows = await asyncio.gather(*(front.submit(b"x" * n) for n in range(10)))

    assert [row[0] for row in rows] == list(range(10))


async def test_front_idle_lane_takes_at_most_most():
    gate = threading.Event()

    def gated(files: list[bytes]) -> np.ndarray:
        assert gate.wait(10)
        return sizes(files)

    front = Front([gated], most=4)
    futures = [front.submit(b"x") for _ in range(6)]

    gate.set()
    rows = await asyncio.gather(*futures)

    assert [row[1] for row in rows] == [1, 4, 4, 4, 4, 1]


def test_waiting_runs_only_the_first_batch():
    runs: list[int] = []

    def work(files: list[bytes]) -> np.ndarray:
        runs.append(len(files))
        return sizes(files)

    wait = waiting(work, 0.0)

    assert [len(wait([b"x"] * n)) for n in (3, 2)] == [3, 2]
    assert runs == [1]

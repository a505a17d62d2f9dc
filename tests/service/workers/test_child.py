from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from contract.errors import ImageTruncated, ManifestInvalid, VersionCorrupt
from contract.versions import sha256
from service.errors import EngineFailure, ModelNotFound
from service.serving.answering import Answered
from service.serving.backend import LocalLanes
from service.settings import Settings
from service.workers import child, wire
from service.workers.child import Worker, resident_bytes
from service.workers.lanes import Reporter, load_lanes
from service.workers.launch import receive
from service.workers.wire import Ask, Frame, FrameReader, Kind, Pong, Worked
from tests import tinymodel

pytestmark = pytest.mark.anyio

ROW = np.array([0.25, 0.75], np.float32)


class FakeAnswerer:
    """Answers at once, or as the picture says."""

    def __init__(self) -> None:
        self.deadlines: list[float] = []
        self.held = asyncio.Event()
        self.begun = asyncio.Event()

    async def answer(self, image: bytes, deadline_s: float) -> Answered:
        self.deadlines.append(deadline_s)
        self.begun.set()
        if image == b"hold":
            await self.held.wait()
        if image == b"truncated":
            raise ImageTruncated("row 7 is missing")
        if image == b"bug":
            raise ZeroDivisionError("secret")
        return Answered(ROW, 0.1, 0.2, 0.3, 0.4, 5)

    def expected_s(self) -> float:
        return 0.0


class FakeLanes:
    """One version."""

    def __init__(self) -> None:
        self.answerer = FakeAnswerer()
        self.answerers = {("tiny", 1): self.answerer}
        self.alive = True


class Front:
    """The other end of a worker's connection."""

    def __init__(self, sock: socket.socket, lanes: FakeLanes, worker: Worker) -> None:
        self.lanes = lanes
        self.worker = worker
        self.sock = sock
        self._reader = FrameReader(wire.MAX_CONTROL_BYTES)
        self._frames: list[Frame] = []

    async def send(self, *pieces: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, b"".join(pieces))

    async def ask(self, number: int, image: bytes, name: str = "tiny") -> None:
        await self.send(*wire.pack_ask(number, Ask(name, 1, 10.0, image)))

    async def next(self) -> Frame:
        while not self._frames:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 65_536)
            self._frames += self._reader.feed(data)
        return self._frames.pop(0)


@asynccontextmanager
async def working(max_image_bytes: int = 1000) -> AsyncIterator[Front]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    lanes = FakeLanes()
    worker = Worker(cast(LocalLanes, lanes), max_image_bytes, lambda: 12_345)
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: worker, sock=theirs)
    try:
        yield Front(ours, lanes, worker)
    finally:
        ours.close()
        await worker.closed


async def test_worker_answers_a_picture_with_its_times():
    async with working() as front:
        before_s = time.monotonic()
        await front.ask(7, b"x")
        reply = await front.next()
        after_s = time.monotonic()

    answered = wire.unpack_answer(reply.payload)
    assert (reply.kind, reply.id, answered.batch_size) == (Kind.ANSWER, 7, 5)
    assert answered.probabilities.tolist() == [0.25, 0.75]
    (deadline_s,) = front.lanes.answerer.deadlines
    assert before_s + 10 <= deadline_s <= after_s + 10


async def test_worker_answers_out_of_order():
    async with working() as front:
        await front.ask(1, b"hold")
        await front.ask(2, b"x")
        first = await front.next()
        front.lanes.answerer.held.set()
        second = await front.next()

    assert (first.id, second.id) == (2, 1)


@pytest.mark.parametrize(
    ("image", "name", "error"),
    [
        (b"truncated", "tiny", ImageTruncated),
        (b"bug", "tiny", EngineFailure),
        (b"x", "other", ModelNotFound),
    ],
    ids=["picture", "bug", "version"],
)
async def test_worker_picture_that_fails_is_refused_and_the_next_answered(
    image, name, error, caplog
):
    async with working() as front:
        with caplog.at_level(logging.CRITICAL):
            await front.ask(1, image, name)
            refused = await front.next()
        await front.ask(2, b"x")
        answered = await front.next()

    raised = wire.unpack_refusal(refused.payload)
    assert (refused.kind, refused.id, type(raised)) == (Kind.REFUSAL, 1, error)
    assert "secret" not in str(raised)
    assert answered.kind is Kind.ANSWER


async def test_worker_cancelled_picture_is_given_up_and_replied_to():
    async with working() as front:
        await front.ask(1, b"hold")
        await front.lanes.answerer.begun.wait()
        await front.send(wire.pack(Kind.CANCEL, 1), wire.pack(Kind.CANCEL, 99))
        reply = await front.next()

    assert (reply.kind, reply.id, front.worker._tasks) == (Kind.CANCELLED, 1, {})


async def test_worker_picture_cancelled_before_it_began_is_replied_to():
    async with working() as front:
        asked = wire.pack_ask(1, Ask("tiny", 1, 10.0, b"x"))
        await front.send(*asked, wire.pack(Kind.CANCEL, 1))

        assert (await front.next()).kind is Kind.CANCELLED


@pytest.mark.parametrize("alive", [True, False])
async def test_worker_answers_pings_with_how_it_is(alive):
    async with working() as front:
        front.lanes.alive = alive
        await front.send(wire.pack(Kind.PING, 3))
        reply = await front.next()

    assert (reply.kind, reply.id) == (Kind.PONG, 3)
    assert wire.unpack_pong(reply.payload) == Pong(alive, 12_345)


async def test_worker_says_that_it_wants_to_retire_and_what_its_lanes_did():
    worked = Worked("tiny", 0.75, ((3, 0.5),))
    async with working() as front:
        front.worker.retire()
        front.worker.report(worked)

        assert (await front.next()).kind is Kind.RETIRE
        assert wire.unpack_worked((await front.next()).payload) == worked


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 13, wire.pack(Kind.PONG, 1), wire.pack(Kind.ASK, 1, b"cut")],
    ids=["noise", "wrong_way", "cut"],
)
async def test_worker_front_that_breaks_the_protocol_is_left(data, caplog):
    async with working() as front:
        with caplog.at_level(logging.CRITICAL):
            await front.send(data)
            await asyncio.wait_for(front.worker.closed, 5)

            assert front.worker.closed.done()


async def test_worker_closed_connection_ends_its_work():
    async with working() as front:
        await front.ask(1, b"hold")
        await front.lanes.answerer.begun.wait()
        (task,) = front.worker._tasks.values()
        front.sock.close()
        await front.worker.closed
        await asyncio.wait([task])

    assert (task.cancelled(), front.worker._tasks) == (True, {})


def test_worker_memory_is_what_the_system_says(tmp_path):
    statm = tmp_path / "statm"
    statm.write_text("100 7 3 1 0 9 0\n", encoding="ascii")

    assert resident_bytes(statm) == 7 * os.sysconf("SC_PAGE_SIZE")
    assert resident_bytes(tmp_path / "none") == 0
    assert resident_bytes() > 1_000_000


# The lanes of a worker


def load(
    models_dir: Path, digest: str = "", cpus: int = 1, **settings: Any
) -> tuple[LocalLanes, list[dict[str, Any]], Reporter]:
    """Loads version 2 of `tiny` as a worker does."""
    reporter = Reporter()
    digest = digest or sha256((models_dir / "tiny" / "2" / "manifest.json").read_bytes())
    values = Settings.model_validate({"provider": "cpu", **settings})
    told = [("tiny", 2, digest)]
    return *load_lanes(values, models_dir, told, cpus, reporter.observers), reporter


async def test_lanes_load_answer_and_report_what_they_did(models_dir):
    lanes, (facts,), reporter = load(models_dir)
    worked: list[Worked] = []
    reporter.send = worked.append
    lanes.start()

    deadline_s = time.monotonic() + 10
    answered = await lanes.answerers["tiny", 2].answer(tinymodel.picture("red"), deadline_s)

    await lanes.stop(1)
    assert answered.probabilities.argmax() == 0
    assert (facts["provider"], facts["fallback"]) == ("cpu", None)
    assert [(one.name, [size for size, _ in one.runs]) for one in worked] == [("tiny", [1])]


def test_lanes_version_that_is_another_by_now_is_refused(models_dir):
    with pytest.raises(VersionCorrupt, match="replaced"):
        load(models_dir, "0" * 64)


@pytest.mark.parametrize(
    ("cpus", "settings", "expected"),
    [
        (4, {}, 4),
        (4, {"threads_per_lane": 2}, 2),
        (1, {"threads_per_lane": 2}, 1),
        (4, {"lanes": 3}, 3),
    ],
    ids=["share", "threads", "at_least_one", "configured"],
)
def test_lanes_follow_the_share_of_the_cores(models_dir, cpus, settings, expected):
    lanes, _, _ = load(models_dir, "", cpus, **settings)

    assert lanes.lanes("tiny") == expected


# The whole life of a worker, in this process


class FrontThread(threading.Thread):
    """Starts a worker over its end of the connection, asks it one thing and leaves."""

    def __init__(self, sock: socket.socket, plan: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.replies: list[Frame] = []
        self._sock = sock
        self._plan = plan

    def run(self) -> None:
        until_s = time.monotonic() + 30
        with self._sock as sock:
            sock.sendall(wire.pack_json(Kind.START, self._plan))
            self.replies.append(receive(sock, until_s))
            if self.replies[0].kind is Kind.READY:
                ask = Ask("tiny", 2, 10.0, tinymodel.picture("red"))
                sock.sendall(b"".join(wire.pack_ask(1, ask)))
                while self.replies[-1].kind is not Kind.ANSWER:
                    self.replies.append(receive(sock, until_s))


def plan_of(models_dir: Path) -> dict[str, Any]:
    manifest = models_dir / "tiny" / "2" / "manifest.json"
    digest = sha256(manifest.read_bytes()) if manifest.exists() else ""
    return {
        "settings": Settings(provider="cpu", lanes=1).model_dump(mode="json"),
        "models_dir": str(models_dir),
        "versions": [["tiny", 2, digest]],
        "cpus": 1,
    }


def live(plan: dict[str, Any]) -> tuple[int, list[Frame]]:
    """Lives a worker's life; returns its exit status and what it said."""
    ours, theirs = socket.socketpair()
    front = FrontThread(ours, plan)
    front.start()
    with theirs:
        status = child._serve(theirs)
    front.join(10)
    return status, front.replies


def test_worker_process_answers_until_the_front_leaves(models_dir):
    status, replies = live(plan_of(models_dir))

    kinds = [reply.kind for reply in replies]
    assert (status, kinds[0], kinds[-1]) == (0, Kind.READY, Kind.ANSWER)
    assert wire.unpack_answer(replies[-1].payload).probabilities.argmax() == 0


def test_worker_process_that_cannot_serve_says_why(tmp_path):
    status, (reply,) = live(plan_of(tmp_path))

    assert (status, reply.kind) == (3, Kind.FAILED)
    assert isinstance(wire.unpack_refusal(reply.payload), ManifestInvalid)


def test_worker_process_with_a_bug_at_the_start_says_so_without_details(models_dir):
    status, (reply,) = live({**plan_of(models_dir), "cpus": "two"})

    assert (status, reply.kind) == (3, Kind.FAILED)
    assert type(wire.unpack_refusal(reply.payload)) is EngineFailure


def test_worker_process_whose_front_is_gone_exits():
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        assert child._serve(theirs) == 3

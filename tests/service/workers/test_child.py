"""The child's side of the connection, mostly run in this process. The test plays the front."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from contract.errors import (
    ImageTooManyPixels,
    ManifestInvalid,
    UnsupportedMediaType,
    VersionCorrupt,
)
from contract.images import ImageLimits, inspect
from contract.predictions import Ranking, TopK
from contract.versions import sha256
from service.batching.lane import BatchJob, LaneCallbacks, QueueEntry
from service.batching.thread_lane import ThreadLane
from service.batching.work import Preparation
from service.errors import EngineFailure
from service.models.engine import Run
from service.models.limits import LoadLimits
from service.models.repository import EngineConfig, LoadedVersion, load_version
from service.workers import child as module
from service.workers import wire
from service.workers.child import EXIT_NOT_SERVABLE, Worker, load, receive_exactly
from service.workers.launch import LaunchedWorker, ProcessLauncher
from service.workers.wire import (
    Frame,
    FrameKind,
    WireBatch,
    WireBatchDone,
    WireError,
    WirePicture,
    WireRow,
)
from tests import tinymodel

RED, GREEN, BLUE = (tinymodel.picture(colour) for colour in tinymodel.LABELS)
LIMITS = ImageLimits()


@pytest.fixture(scope="module")
def versions(models_dir: Path) -> list[LoadedVersion]:
    """Versions 1 and 2 of `tiny`."""
    return [load_version(models_dir, "tiny", number, EngineConfig("cpu")) for number in (1, 2)]


def work_of(*images: bytes, version: int = 0, remaining_s: float = math.inf) -> WireBatch:
    return WireBatch(version, False, [WirePicture(image, remaining_s, TopK()) for image in images])


def answered(
    versions: list[LoadedVersion], work: WireBatch, limits: ImageLimits = LIMITS
) -> list[str | None]:
    """Each picture's label, or the name of its error."""
    done = Worker(cast(socket.socket, None), versions, limits).answer(work)
    return [label_of(outcome) for outcome in done.outcomes]


def label_of(outcome: WireRow | Exception | None) -> str | None:
    if isinstance(outcome, WireRow):
        return tinymodel.LABELS[outcome.row.ranking[0][0]]
    return type(outcome).__name__


# One batch


def test_child_answers_each_picture_of_a_batch_in_order(versions):
    done = Worker(cast(socket.socket, None), versions, LIMITS).answer(work_of(RED, BLUE, GREEN))

    assert [label_of(one) for one in done.outcomes] == ["red", "blue", "green"]
    ((size, run_s),) = done.runs
    assert (size, run_s > 0, done.work_s > run_s) == (3, True, True)
    for one in done.outcomes:
        assert isinstance(one, WireRow)
        assert one.row.batch_size == 3
        assert min(one.decode_s, one.preprocess_s, one.row.queue_s + 1e-9) > 0
        assert one.row.run_s == run_s


def test_child_runs_the_requested_version(versions):
    class BlueEngine:
        def run(self, batch: Any, _run: Any) -> Any:
            return np.tile(np.array([0, 0, 1], np.float32), (len(batch), 1))

    other = LoadedVersion(
        **{name: getattr(versions[1], name) for name in LoadedVersion.__slots__}
        | {"engine": BlueEngine()}
    )

    labels = [answered([versions[0], other], work_of(RED, version=place)) for place in (0, 1)]

    assert labels == [["red"], ["blue"]]


@pytest.mark.parametrize("all_cores", [True, False], ids=["all_cores", "one_core"])
def test_child_run_has_all_cores_on_request(versions, all_cores):
    all_cores_flags = []

    class Engine:
        def run(self, batch: Any, run: Any) -> Any:
            all_cores_flags.append(run.all_cores)
            return versions[0].engine.run(batch, run)

    version = LoadedVersion(
        **{name: getattr(versions[0], name) for name in LoadedVersion.__slots__}
        | {"engine": Engine()}
    )

    answered([version], WireBatch(0, all_cores, [WirePicture(RED, math.inf, TopK())]))

    assert all_cores_flags == [all_cores]


def test_child_bad_pictures_fail_alone(versions):
    labels = answered(versions, work_of(RED, RED[:40], b"x", b"", BLUE))

    refused = ["ImageUndecodable", "UnsupportedMediaType", "UnsupportedMediaType"]
    assert labels == ["red", *refused, "blue"]


def test_child_batch_of_bad_pictures_runs_nothing(versions):
    done = Worker(cast(socket.socket, None), versions, LIMITS).answer(work_of(b"x", b"y"))

    assert (done.runs, len(done.outcomes)) == ([], 2)


def test_child_expired_pictures_are_not_decoded(versions):
    work = WireBatch(
        0,
        False,
        [
            WirePicture(RED[:40], -0.5, TopK()),
            WirePicture(RED, 60.0, TopK()),
        ],
    )

    assert answered(versions, work) == ["DeadlineExceeded", "red"]


def test_child_limits_reach_the_decoder(versions):
    labels = answered(versions, work_of(RED), ImageLimits(max_pixels=10))

    assert labels == [ImageTooManyPixels.__name__]


def test_child_knows_the_formats_that_are_switched_off(versions):
    sent = json.loads(json.dumps(asdict(ImageLimits(formats=("webp", "gif")))))

    labels = answered(versions, work_of(RED), ImageLimits(**sent))

    assert labels == [UnsupportedMediaType.__name__]


@pytest.mark.anyio
async def test_child_answers_are_identical_to_those_of_a_thread(versions):
    images = [tinymodel.picture((40 * n, 255 - 30 * n, 7 * n), 8 + 5 * n) for n in range(5)]
    child = Worker(cast(socket.socket, None), versions, LIMITS)
    done: asyncio.Queue[BatchJob[QueueEntry]] = asyncio.Queue()
    ignored: Any = [lambda *_: None] * 3
    lane = ThreadLane(LaneCallbacks(lambda _, job: done.put_nowait(job), *ignored), lambda: 0.0)

    from_child = child.answer(work_of(*images, version=1)).outcomes

    loop = asyncio.get_running_loop()
    entries = [
        QueueEntry(
            Preparation(inspect(image, LIMITS), versions[1].manifest, math.inf),
            math.inf,
            0.0,
            TopK(),
            loop.create_future(),
        )
        for image in images
    ]

    lane.work(BatchJob(versions[1], entries, Run(), 0.0))
    await done.get()
    lane.close()

    from_lane = [entry.future.result().ranking for entry in entries]
    assert [ranking_of(outcome) for outcome in from_child] == from_lane


def ranking_of(outcome: WireRow | Exception | None) -> Ranking:
    assert isinstance(outcome, WireRow)
    return outcome.row.ranking


# The connection


class Front:
    """The front's end of a child's connection. Its calls block."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, *pieces: bytes) -> None:
        self.sock.sendall(b"".join(pieces))

    def next(self) -> Frame | None:
        return wire.read_frame(lambda size: receive_exactly(self.sock, size))


@pytest.fixture
def pair() -> Iterator[tuple[Front, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with ours, theirs:
        yield Front(ours), theirs


def test_child_serves_until_the_connection_ends(pair, versions):
    front, sock = pair
    for image in (RED, BLUE):
        front.send(*wire.pack_work(work_of(image)))
    front.sock.shutdown(socket.SHUT_WR)

    Worker(sock, versions, LIMITS).serve()

    frames = [front.next(), front.next()]
    labels = [label_of(wire.unpack_done(one.payload).outcomes[0]) for one in frames if one]
    assert labels == ["red", "blue"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff" * 9, "unknown kind"),
        (b"".join(wire.pack(FrameKind.DONE)), "unexpected DONE"),
        (b"".join(wire.pack_work(work_of(RED)))[:-1], "within a frame"),
        (b"".join(wire.pack(FrameKind.WORK, b"cut")), "payload"),
    ],
    ids=["noise", "wrong_way", "cut_frame", "cut_work"],
)
def test_child_ends_when_the_front_breaks_the_protocol(pair, versions, data, words):
    front, sock = pair
    front.send(data)
    front.sock.shutdown(socket.SHUT_WR)

    with pytest.raises(WireError, match=words):
        Worker(sock, versions, LIMITS).serve()


class CallbackSocket:
    """A child's socket that calls back at a chosen moment, as a signal handler would run."""

    def __init__(self, sock: socket.socket) -> None:
        self.before_receiving: Callable[[], None] = lambda: None
        self.before_sending: Callable[[], None] = lambda: None
        self.after_sending: Callable[[], None] = lambda: None
        self._sock = sock

    def recv_into(self, view: memoryview) -> int:
        call_once(self, "before_receiving")
        return self._sock.recv_into(view)

    def sendall(self, data: bytes) -> None:
        call_once(self, "before_sending")
        self._sock.sendall(data)
        call_once(self, "after_sending")


def call_once(sock: CallbackSocket, name: str) -> None:
    callback = getattr(sock, name)
    setattr(sock, name, lambda: None)
    callback()


@pytest.mark.parametrize(
    ("moment", "kinds"),
    [
        ("before_receiving", [FrameKind.RETIRE, FrameKind.DONE]),
        ("before_sending", [FrameKind.DONE, FrameKind.RETIRE]),
        ("after_sending", [FrameKind.DONE, FrameKind.RETIRE]),
    ],
    ids=["idle", "working", "answered"],
)
def test_child_asks_to_be_replaced_between_its_answers(pair, versions, moment, kinds):
    front, sock = pair
    front.send(*wire.pack_work(work_of(RED)))
    front.sock.shutdown(socket.SHUT_WR)
    callback_socket = CallbackSocket(sock)
    child = Worker(cast(socket.socket, callback_socket), versions, LIMITS)
    setattr(callback_socket, moment, child.retire)

    child.serve()
    sock.close()

    frames = list(iter(front.next, None))
    assert [one.kind for one in frames] == kinds
    (done,) = (wire.unpack_done(one.payload) for one in frames if one.kind is FrameKind.DONE)
    assert label_of(done.outcomes[0]) == "red"


def test_child_sigterm_during_a_run_retires_after_the_answer(pair, versions):
    front, sock = pair
    front.send(*wire.pack_work(work_of(RED)), *wire.pack_work(work_of(BLUE)))
    front.sock.shutdown(socket.SHUT_WR)
    child = Worker(sock, versions, LIMITS)
    answer = child.answer

    def retire_and_answer(work: WireBatch) -> WireBatchDone:
        if work.pictures[0].image == RED:
            child.retire()
        return answer(work)

    child.answer = retire_and_answer  # type: ignore[method-assign]
    child.serve()
    sock.close()

    kinds = [one.kind for one in iter(front.next, None) if one]
    assert kinds == [FrameKind.DONE, FrameKind.RETIRE, FrameKind.DONE]


class SplitSendSocket(CallbackSocket):
    """Calls back in the middle of each send."""

    def sendall(self, data: bytes) -> None:
        self._sock.sendall(data[:4])
        call_once(self, "before_sending")
        self._sock.sendall(data[4:])


def test_child_sigterm_during_a_send_does_not_split_the_frame(pair, versions):
    front, sock = pair
    front.send(*wire.pack_work(work_of(RED)))
    front.sock.shutdown(socket.SHUT_WR)
    callback_socket = SplitSendSocket(sock)
    child = Worker(cast(socket.socket, callback_socket), versions, LIMITS)
    callback_socket.before_receiving = callback_socket.before_sending = child.retire

    child.serve()
    sock.close()

    kinds = [one.kind for one in iter(front.next, None) if one]
    assert kinds == [FrameKind.RETIRE, FrameKind.DONE, FrameKind.RETIRE]


def test_child_sigterm_before_serving_retires_at_once(pair, versions):
    front, sock = pair
    front.sock.shutdown(socket.SHUT_WR)
    child = Worker(sock, versions, LIMITS)
    child.retire()

    child.serve()
    sock.close()

    assert [one.kind for one in iter(front.next, None) if one] == [FrameKind.RETIRE]


# Loading the versions


def start_message(
    models_dir: Path, *numbers: int, digest: str = "", golden_difference: float | None = None
) -> dict[str, Any]:
    listed = []
    for number in numbers or (2,):
        manifest = models_dir / "tiny" / str(number) / "manifest.json"
        actual = sha256(manifest.read_bytes()) if manifest.exists() else ""
        listed.append(["tiny", number, digest or actual, golden_difference])

    return {
        "models_dir": str(models_dir),
        "run": {"provider": "cpu", "threads": 1, "lone_run_threads": 1, "max_batch_size": 3},
        "versions": listed,
        "limits": {"max_pixels": 1000},
        "log_level": "info",
    }


def test_child_does_not_verify_again_what_another_has_verified(models_dir, monkeypatch):
    monkeypatch.setattr("service.models.repository.replay_golden", None)

    _, facts = load(start_message(models_dir, golden_difference=0.25), lambda: None)

    assert [one["golden_difference"] for one in facts] == [0.25]


def test_child_loads_its_versions_in_the_order_of_the_start_message(models_dir):
    begun: list[None] = []

    loaded, facts = load(start_message(models_dir, 2, 1), lambda: begun.append(None))

    assert [one.key for one in loaded] == [("tiny", 2), ("tiny", 1)]
    assert len(begun) == 2
    for version, fact in zip(loaded, facts, strict=True):
        assert (fact["provider"], fact["fallback"], fact["max_batch_size"]) == ("cpu", None, 3)
        assert fact["golden_difference"] == version.golden_difference
        assert fact["load_s"] == version.load_s > 0


def test_child_version_with_another_manifest_is_refused(models_dir):
    with pytest.raises(VersionCorrupt, match=r"tiny/2.*replaced"):
        load(start_message(models_dir, digest="0" * 64), lambda: None)


# A worker from start to exit, in this process


class FrontThread(threading.Thread):
    """Starts a child, has one picture answered and closes the connection."""

    def __init__(self, sock: socket.socket, message: Any, image: bytes) -> None:
        super().__init__(daemon=True)
        self.n_loading = 0
        self.replies: list[Frame | None] = []
        self._front = Front(sock)
        self._message = message
        self._image = image

    def run(self) -> None:
        with self._front.sock:
            self._front.send(*wire.pack_json(FrameKind.START, self._message))
            first = self._front.next()
            while first and first.kind is FrameKind.LOADING:
                self.n_loading += 1
                first = self._front.next()
            self.replies.append(first)
            if first and first.kind is FrameKind.READY:
                self._front.send(*wire.pack_work(work_of(self._image)))
                self.replies.append(self._front.next())


@pytest.fixture
def no_signals(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The handlers that would be set; this process keeps its own."""
    handlers: list[Any] = []
    monkeypatch.setattr(signal, "signal", lambda *handler: handlers.append(handler))
    return handlers


def run_worker(message: Any, image: bytes = RED) -> tuple[int, list[Frame | None]]:
    """Runs a worker to its end; returns its exit status and the frames it sent."""
    ours, theirs = socket.socketpair()
    front = FrontThread(ours, message, image)
    front.start()
    with theirs:
        status = module._run(theirs)
    front.join(30)
    return status, front.replies


def test_worker_process_answers_until_the_front_disconnects(models_dir, no_signals):
    status, (ready, done) = run_worker(start_message(models_dir))

    assert (status, ready and ready.kind, done and done.kind) == (
        0,
        FrameKind.READY,
        FrameKind.DONE,
    )
    assert ready
    assert [one["provider"] for one in wire.unpack_json(ready.payload)["versions"]] == ["cpu"]

    assert done
    assert [label_of(one) for one in wire.unpack_done(done.payload).outcomes] == ["red"]

    ((number, handler),) = no_signals
    assert (number, handler.__name__) == (signal.SIGTERM, "retire")


def test_worker_process_keeps_the_limits_of_the_start_message(models_dir, no_signals):
    _, (_, done) = run_worker(start_message(models_dir), tinymodel.picture("red", 33))

    assert done
    (outcome,) = wire.unpack_done(done.payload).outcomes
    assert isinstance(outcome, ImageTooManyPixels)
    assert no_signals


def test_worker_process_that_cannot_serve_reports_why(tmp_path):
    status, (reply,) = run_worker(start_message(tmp_path))

    assert reply
    assert (status, reply.kind) == (EXIT_NOT_SERVABLE, FrameKind.FAILED)
    assert isinstance(wire.unpack_failed(reply.payload), ManifestInvalid)


def test_worker_process_with_a_bug_at_the_start_reports_it_without_details(models_dir, capfd):
    message = start_message(models_dir) | {"run": {"provider": "cpu", "secret": 1}}

    status, (reply,) = run_worker(message)

    assert reply
    assert (status, reply.kind) == (EXIT_NOT_SERVABLE, FrameKind.FAILED)
    error = wire.unpack_failed(reply.payload)
    assert type(error) is EngineFailure
    assert "secret" not in str(error)
    assert "could not start" in capfd.readouterr().out


def test_worker_process_whose_front_has_disconnected_exits():
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        assert module._run(theirs) == EXIT_NOT_SERVABLE


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"\xff" * 9, b"".join(wire.pack(FrameKind.START, b"{"))]
)
def test_worker_process_without_a_start_message_exits(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)

        assert module._run(theirs) == EXIT_NOT_SERVABLE


def test_worker_process_whose_front_is_killed_while_it_sends_exits_quietly(
    models_dir, no_signals, capfd
):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"".join(wire.pack_json(FrameKind.START, start_message(models_dir))))
        ours.sendall(b"".join(wire.pack_work(work_of(RED)))[:-1])
        ours.shutdown(socket.SHUT_WR)

        assert module._run(theirs) == EXIT_NOT_SERVABLE

    assert no_signals
    assert capfd.readouterr().err == ""


# Real processes


@pytest.fixture
def launched(models_dir: Path) -> Iterator[LaunchedWorker]:
    """A worker that serves version 2 of `tiny`; its connection blocks."""
    (one,) = ProcessLauncher(start_message(models_dir), LoadLimits(60.0)).launch_now(1)
    one.sock.settimeout(60)
    yield one
    one.abort()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=lambda one: one.name)
def test_worker_process_ignores_the_signals_of_a_terminal(launched, number):
    front = Front(launched.sock)
    os.kill(launched.process.pid, number)
    front.send(*wire.pack_work(work_of(RED)))

    done = front.next()
    assert done
    assert done.kind is FrameKind.DONE


def test_worker_process_repeated_sigterm_corrupts_no_answer(launched):
    n_batches, size = 60, 200  # more than the socket buffers hold
    front = Front(launched.sock)
    batch = b"".join(wire.pack_work(work_of(*[RED] * size)))
    sender = threading.Thread(target=front.send, args=[batch] * n_batches)
    sender.start()

    answers: list[WireBatchDone] = []
    n_retire_frames = 0
    while len(answers) < n_batches:
        for _ in range(3):
            os.kill(launched.process.pid, signal.SIGTERM)
        frame = front.next()
        assert frame
        if frame.kind is FrameKind.DONE:
            answers.append(wire.unpack_done(frame.payload))
        n_retire_frames += frame.kind is FrameKind.RETIRE
    sender.join()

    assert n_retire_frames
    assert {len(one.outcomes) for one in answers} == {size}
    assert len({str(ranking_of(outcome)) for one in answers for outcome in one.outcomes}) == 1


def test_worker_process_whose_parent_has_ended_already_exits():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ran = subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "service.workers", str(theirs.fileno()), "1"],
            pass_fds=[theirs.fileno()],
            check=False,
        )

    assert ran.returncode == EXIT_NOT_SERVABLE

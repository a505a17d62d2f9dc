"""Both kinds of backend with the tiny model: threads in this process, and real child processes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from contract.errors import (
    ImageError,
    ImageTooManyPixels,
    NothingToServe,
    UnsupportedMediaType,
)
from contract.predictions import TopK
from contract.preprocessing import decode_file
from service.batching import work
from service.batching.batcher import BatchCallbacks
from service.batching.lane import RestartReason
from service.batching.sizing import engine_config
from service.errors import DeadlineExceeded, WorkerNotStarted
from service.models.repository import LoadedVersion, Repository
from service.models.selection import RepositoryConfig
from service.serving import backend as module
from service.serving.backend import InferenceResult, LaneBackend, load_backend
from service.settings import Settings
from service.workers.launch import ProcessLauncher
from tests import tinymodel
from tests.waiting import until

pytestmark = pytest.mark.anyio

RED, GREEN, BLUE = (tinymodel.picture(colour) for colour in tinymodel.LABELS)
KINDS = {"threads": {"lanes": 2}, "processes": {"workers": 2}}
both_kinds = pytest.mark.parametrize("kind", KINDS)


def load(
    models_dir: Path,
    kind: str = "threads",
    *,
    callbacks: BatchCallbacks | None = None,
    repository_file: Path | None = tinymodel.LOAD_ALL,
    **settings: Any,
) -> LaneBackend:
    values = Settings.model_validate({"provider": "cpu", **KINDS[kind], **settings})
    config = RepositoryConfig(models_dir, engine_config(values, 2), repository_file)
    return load_backend(values, config, 2, callbacks)


@asynccontextmanager
async def running(*arguments: Any, **options: Any) -> AsyncIterator[LaneBackend]:
    backend = load(*arguments, **options)
    backend.start()
    try:
        yield backend
    finally:
        await backend.stop(5)
        backend.close()


async def answer(backend: LaneBackend, image: bytes = RED, number: int = 1) -> InferenceResult:
    version = backend.repository.get("tiny", number)
    return await backend.answer(version, image, time.monotonic() + 30, TopK())


async def all_ready(backend: LaneBackend) -> None:
    await until(lambda: backend.n_lanes == 2)  # processes are connected one by one


def label_of(answered: InferenceResult) -> str:
    return tinymodel.LABELS[answered.ranking[0][0]]


# Answers


@both_kinds
async def test_backend_answers_with_each_version_and_its_stage_times(models_dir, kind):
    async with running(models_dir, kind) as backend:
        answers = [await answer(backend, number=number) for number in (1, 2)]

    assert [label_of(one) for one in answers] == ["red", "red"]
    for one in answers:
        assert one.batch_size == 1
        assert min(one.decode_s, one.preprocess_s, one.infer_s) > 0
        assert one.queue_s >= 0


@both_kinds
async def test_backend_answers_are_identical_to_those_of_threads(models_dir, kind):
    pictures = [tinymodel.picture((40 * n, 255 - 30 * n, 7 * n), 8 + 5 * n) for n in range(6)]
    async with running(models_dir) as threads, running(models_dir, kind) as backend:
        from_threads = [await answer(threads, one) for one in pictures]
        from_other = await asyncio.gather(*(answer(backend, one) for one in pictures))

    assert [one.ranking for one in from_threads] == [one.ranking for one in from_other]


@both_kinds
async def test_backend_bad_picture_fails_alone(models_dir, kind):
    async with running(models_dir, kind) as backend:
        jobs = [answer(backend, image) for image in (RED, RED[:40], b"x", BLUE)]
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)

    assert [isinstance(one, ImageError) for one in outcomes] == [False, True, True, False]
    labels = [label_of(one) for one in outcomes if isinstance(one, InferenceResult)]
    assert labels == ["red", "blue"]


@both_kinds
async def test_backend_expired_picture_is_not_decoded(models_dir, kind):
    async with running(models_dir, kind) as backend:
        version = backend.repository.get("tiny", 1)
        with pytest.raises(DeadlineExceeded):
            await backend.answer(version, RED[:40], time.monotonic() - 1, TopK())


@both_kinds
async def test_backend_limits_reach_the_decoder(models_dir, kind):
    async with running(models_dir, kind, max_image_pixels=10) as backend:
        with pytest.raises(ImageTooManyPixels):
            await answer(backend)


@both_kinds
async def test_backend_refuses_formats_that_are_switched_off(models_dir, kind):
    async with running(models_dir, kind, image_formats="png") as backend:
        png = await answer(backend, RED)
        with pytest.raises(UnsupportedMediaType, match=r"BMP.*switched off.*accepted are PNG$"):
            await answer(backend, tinymodel.picture("red", file_format="BMP"))

    assert label_of(png) == "red"


@both_kinds
async def test_backend_calls_the_callbacks_for_runs_and_work(models_dir, kind):
    runs: list[tuple[tuple[str, int], int]] = []
    works: list[tuple[str, int]] = []
    callbacks = BatchCallbacks(
        lambda key, size, _run_s: runs.append((key, size)), lambda key, _: works.append(key)
    )
    async with running(models_dir, kind, callbacks=callbacks) as backend:
        await answer(backend)

    assert (runs, works) == ([(("tiny", 1), 1)], [("tiny", 1)])


@both_kinds
async def test_backend_has_an_estimate_after_the_first_run(models_dir, kind):
    async with running(models_dir, kind) as backend:
        version = backend.repository.get("tiny", 1)
        unknown = backend.expected_s(version)
        await answer(backend)
        jobs = [asyncio.create_task(answer(backend)) for _ in range(20)]
        await asyncio.sleep(0)
        known = backend.expected_s(version)
        await asyncio.gather(*jobs)

    assert (unknown, known > 0) == (0.0, True)


# Where pictures are prepared


@pytest.fixture
def prepared_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads of this process that decoded a picture, one per picture."""
    names: list[str] = []

    def record_thread(*args: Any) -> Any:
        names.append(threading.current_thread().name.partition("_")[0])
        return decode_file(*args)

    monkeypatch.setattr(work, "decode_file", record_thread)
    return names


async def test_backend_of_threads_prepares_small_pictures_on_their_lanes(models_dir, prepared_on):
    async with running(models_dir) as backend:
        await answer(backend)

    assert prepared_on == ["lane"]


async def test_backend_of_threads_prepares_large_pictures_in_the_pool(
    models_dir, prepared_on, monkeypatch
):
    monkeypatch.setattr(work, "LARGE_PIXELS", 1)
    async with running(models_dir) as backend:
        answered = await answer(backend)

    assert (label_of(answered), prepared_on) == ("red", ["prepare"])
    assert min(answered.decode_s, answered.preprocess_s) > 0


async def test_backend_of_threads_prepares_everything_in_the_pool_for_a_gpu(
    models_dir, prepared_on, monkeypatch
):
    monkeypatch.setattr(module, "runs_on_cores", lambda _version: False)
    async with running(models_dir) as backend:
        await answer(backend)

    assert prepared_on == ["prepare"]


async def test_backend_of_processes_prepares_nothing_in_this_process(
    models_dir, prepared_on, monkeypatch
):
    monkeypatch.setattr(work, "LARGE_PIXELS", 1)
    monkeypatch.setattr(module, "runs_on_cores", lambda _version: False)
    async with running(models_dir, "processes") as backend:
        assert label_of(await answer(backend)) == "red"

    assert prepared_on == []


async def test_backend_of_processes_queues_large_pictures_separately(models_dir, monkeypatch):
    monkeypatch.setattr(work, "LARGE_PIXELS", 16 * 16 - 1)
    async with running(models_dir, "processes") as backend:
        await all_ready(backend)
        large = [asyncio.create_task(answer(backend)) for _ in range(3)]
        small = asyncio.create_task(answer(backend, tinymodel.picture("blue", 8)))
        for _ in range(2):  # the tasks submit, then the batcher dispatches
            await asyncio.sleep(0)

        running_jobs = [[job.large for job in lane.jobs] for lane in backend.batcher._lanes]
        waiting = backend.batcher.waiting
        answers = await asyncio.gather(*large, small)

    assert (running_jobs, waiting) == ([[True], [False]], 2)
    assert [label_of(one) for one in answers] == ["red", "red", "red", "blue"]


# State


@both_kinds
async def test_backend_is_alive_from_start_to_stop(models_dir, kind):
    backend = load(models_dir, kind)
    states = [(backend.alive, backend.n_lanes)]

    backend.start()
    await answer(backend)
    await all_ready(backend)
    states.append((backend.alive, backend.n_lanes))
    healthy = backend.trouble()

    finished = await backend.stop(5)
    states.append((backend.trouble() is None, backend.n_lanes))
    backend.close()

    assert states == [(True, 0), (True, 2), (False, 0)]
    assert (healthy, finished) == (None, True)


async def test_backend_whose_processes_all_died_is_not_ready_but_alive(models_dir):
    replaced: list[RestartReason] = []
    callbacks = BatchCallbacks(on_replaced=replaced.append)
    async with running(models_dir, "processes", callbacks=callbacks) as backend:
        await answer(backend)
        for lane in list(backend.batcher._lanes):
            lane._process.kill()  # type: ignore[attr-defined]
        await until(lambda: not backend.n_lanes)  # noticed without a request

        state = (backend.alive, backend.trouble())
        after_restart = await answer(backend)

    assert state == (True, "no lane is ready")
    assert (label_of(after_restart), replaced) == ("red", [RestartReason.EXITED] * 2)


# Replacement by a successor


@both_kinds
async def test_backend_successor_answers_with_the_new_versions(tmp_path, kind):
    tinymodel.write_version(tmp_path)
    async with running(tmp_path, kind) as backend:
        tinymodel.write_version(tmp_path, version=2)
        new = backend.load(tmp_path, "tiny", 2, engine_config(Settings(provider="cpu"), 2))
        successor = await backend.renewed(Repository([*backend.repository.versions(), new]))

        successor.start()
        answers_of_both = [await answer(one, number=1) for one in (backend, successor)]
        stopped = await backend.stop(5)
        newest = await answer(successor, number=2)
        state = (successor.alive, successor.trouble())
        await successor.stop(5)

    assert [label_of(one) for one in (*answers_of_both, newest)] == ["red"] * 3
    assert (stopped, state) == (True, (True, None))
    assert [one.key for one in successor.repository.versions()] == [("tiny", 1), ("tiny", 2)]


async def test_backend_whose_successor_does_not_start_keeps_working(models_dir, monkeypatch):
    async def fail(_launcher: ProcessLauncher) -> None:
        raise WorkerNotStarted("no memory")

    async with running(models_dir, "processes") as backend:
        with monkeypatch.context() as patch:
            patch.setattr(ProcessLauncher, "launch", fail)
            with pytest.raises(WorkerNotStarted):
                await backend.renewed(backend.repository)

        assert label_of(await answer(backend)) == "red"


@both_kinds
async def test_backend_loads_versions_where_its_lanes_run(models_dir, kind):
    backend = load(models_dir, kind)
    backend.start()

    try:
        loaded: LoadedVersion = await asyncio.to_thread(
            backend.load, models_dir, "tiny", 2, engine_config(Settings(provider="cpu"), 2)
        )
    finally:
        await backend.stop(5)
        backend.close()

    in_this_process = type(loaded.engine).__name__ == "OnnxEngine"
    assert (loaded.key, in_this_process) == (("tiny", 2), kind == "threads")


@both_kinds
def test_backend_of_a_broken_version_is_not_created(tmp_path, kind):
    tinymodel.write_version(tmp_path)
    (tmp_path / "tiny" / "1" / "model.onnx").write_bytes(b"x")

    with pytest.raises(NothingToServe, match=r"tiny/1: model\.onnx"):
        load(tmp_path, kind)

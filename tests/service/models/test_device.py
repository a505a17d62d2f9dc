"""Device runs in main memory, which onnxruntime binds in the same way as GPU memory."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from contract.manifest import Manifest
from service.models import engine as engine_module
from service.models.device import DeviceRuns, TensorNames, fixed_sizes
from service.models.engine import OnnxEngine, Run
from service.models.providers import PROVIDERS, ProviderSession, open_session
from service.models.repository import EngineConfig, load_version
from tests import tinymodel

NAMES = TensorNames("image", "probabilities")


class RecordingSession:
    """A session that records the shape of every bound run."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.shapes: list[tuple[int, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self._session.run_with_iobinding(binding, options)
        self.shapes.append(tuple(binding.get_outputs()[0].shape()))


def pictures(count: int) -> np.ndarray[Any, Any]:
    colours = np.random.default_rng(count).integers(0, 256, (count, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(colours, (count, tinymodel.SIDE_PX, tinymodel.SIDE_PX, 3)).copy()


@pytest.fixture
def opened() -> ProviderSession:
    session = open_session(tinymodel.graph(), "cpu", threads=1)
    return ProviderSession(RecordingSession(session.session), "cpu")


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(PROVIDERS["cpu"], device="cpu", batch_sizes=(1, 4))
    monkeypatch.setitem(PROVIDERS, "cpu", row)


@pytest.mark.parametrize(
    ("sizes", "largest", "expected"),
    [
        ((1, 2, 4, 8), 8, (1, 2, 4, 8)),
        ((1, 2, 4, 8), 6, (1, 2, 4, 6)),
        ((1, 2, 4, 8), 1, (1,)),
        ((8, 1), 64, (1, 8, 64)),
        ((), 16, (16,)),
    ],
)
def test_fixed_sizes_end_with_the_largest(sizes, largest, expected):
    assert fixed_sizes(sizes, largest) == expected


@pytest.mark.parametrize(("count", "run"), [(1, 1), (2, 4), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_device_runs_are_padded_to_the_next_size(opened, count, run):
    plain = open_session(tinymodel.graph(), "cpu", threads=1).session
    batch = pictures(count)

    answers = DeviceRuns(opened, "cpu", NAMES, (1, 4, 8)).run(batch, None)

    assert opened.session.shapes == [(run, 3)]
    assert answers == pytest.approx(plain.run([NAMES.output], {NAMES.input: batch})[0], abs=1e-6)


def test_device_runs_answers_survive_the_next_run(opened):
    runs = DeviceRuns(opened, "cpu", NAMES, (4,))
    first = runs.run(pictures(3), None)
    kept = first.copy()

    runs.run(pictures(4), None)

    assert np.array_equal(first, kept)


def test_device_runs_warm_up_runs_every_size(opened):
    DeviceRuns(opened, "cpu", NAMES, (1, 4, 8)).warm_up(pictures(1)[0])

    assert opened.session.shapes == [(1, 3), (4, 3), (8, 3)]


def test_device_runs_take_a_batch_that_is_not_contiguous(opened):
    batch = pictures(4)

    answers_reversed = DeviceRuns(opened, "cpu", NAMES, (4,)).run(batch[::-1], None)

    answers = DeviceRuns(opened, "cpu", NAMES, (4,)).run(batch, None)
    assert np.array_equal(answers_reversed[::-1], answers)


def test_device_runs_of_two_threads_do_not_share_buffers(opened):
    runs = DeviceRuns(opened, "cpu", NAMES, (1, 4))
    plain = open_session(tinymodel.graph(), "cpu", threads=1).session
    batches = [pictures(count) for count in (1, 2, 3, 4)]
    expected = [plain.run([NAMES.output], {NAMES.input: batch})[0] for batch in batches]
    wrong: list[int] = []

    def repeat(start: int) -> None:
        for turn in range(start, start + 200):
            at = turn % len(batches)
            if not np.allclose(runs.run(batches[at], None), expected[at], atol=1e-6):
                wrong.append(turn)

    threads = [threading.Thread(target=repeat, args=(start,)) for start in (0, 1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert len(opened.session.shapes) == 600


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.usefixtures("on_device")
def test_engine_on_a_device_serves_a_version(tmp_path, kind):
    tinymodel.write_version(tmp_path, kind=kind)

    loaded = load_version(tmp_path, "tiny", 1, EngineConfig("cpu", max_batch_size=6))

    assert loaded.golden_difference < 1e-5
    assert loaded.max_batch_size == 6


@pytest.mark.usefixtures("on_device")
def test_engine_on_a_device_runs_the_sizes_of_the_provider(tmp_path, opened):
    engine = OnnxEngine(opened, tinymodel.write_version(tmp_path), largest_batch=6)
    engine.warm_up()

    engine.run(pictures(3))

    assert [shape[0] for shape in opened.session.shapes] == [1, 4, 6, 4]


@pytest.mark.usefixtures("on_device")
def test_engine_on_a_device_with_a_fixed_batch_runs_that_size_only(tmp_path):
    manifest: Manifest = tinymodel.write_version(tmp_path, batch=1)
    session = open_session(tinymodel.graph(batch=1), "cpu", threads=1).session
    opened = ProviderSession(RecordingSession(session), "cpu")

    engine = OnnxEngine(opened, manifest, largest_batch=1)
    engine.warm_up()
    engine.run(pictures(1))

    assert opened.session.shapes == [(1, 3), (1, 3)]


@pytest.mark.usefixtures("on_device")
def test_engine_on_a_device_interrupted_run_fails(tmp_path, opened):
    engine, run = OnnxEngine(opened, tinymodel.write_version(tmp_path)), Run()
    run.interrupt()

    with pytest.raises(Exception, match=r"(?i)terminate"):
        engine.run(pictures(1), run)


def test_engine_on_the_cpu_binds_nothing(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(engine_module, "DeviceRuns", None)
    engine = OnnxEngine(opened, tinymodel.write_version(tmp_path), largest_batch=6)

    engine.warm_up()
    engine.run(pictures(3))

    assert opened.session.shapes == []


@pytest.mark.parametrize("name", PROVIDERS)
def test_providers_with_fixed_sizes_can_run_a_single_picture(name):
    sizes = PROVIDERS[name].batch_sizes

    assert not sizes or min(sizes) == 1
    assert not sizes or PROVIDERS[name].device is not None

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from contract.errors import GraphMismatch
from contract.images import decode
from contract.manifest import Manifest
from contract.preprocessing import to_input
from service.models.engine import OnnxEngine, Run
from service.models.providers import ProviderSession, open_session
from tests import tinymodel
from tests.waiting import wait_until


def engine_of(manifest: Manifest, graph: bytes) -> OnnxEngine:
    return OnnxEngine(open_session(graph, "cpu", threads=1), manifest)


def changed(manifest: Manifest, **graph: Any) -> Manifest:
    return manifest.model_copy(update={"graph": manifest.graph.model_copy(update=graph)})


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    return tinymodel.write_version(tmp_path)


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_engine_answers_each_row_as_expected(tmp_path, kind, count):
    manifest = tinymodel.write_version(tmp_path, kind=kind)
    engine = engine_of(manifest, tinymodel.graph(kind))
    colours = [(40 * number, 255 - 30 * number, 10) for number in range(count)]
    rows = [to_input(decode(tinymodel.picture(colour)), manifest) for colour in colours]

    probabilities = engine.run(np.stack(rows))

    assert probabilities.shape == (count, 3)
    expected = [tinymodel.expected(colour) for colour in colours]
    assert probabilities == pytest.approx(np.array(expected), abs=1e-5)


def test_engine_different_input_name_refused(manifest):
    wrong = changed(manifest, input=manifest.graph.input.model_copy(update={"name": "pixels"}))

    with pytest.raises(GraphMismatch, match="inputs are image, the manifest says pixels"):
        engine_of(wrong, tinymodel.graph())


@pytest.mark.parametrize(
    ("manifest_kind", "graph_kind"), [("uint8", "float32"), ("float32", "uint8")]
)
def test_engine_different_dtype_refused(tmp_path, manifest_kind, graph_kind):
    manifest = tinymodel.write_version(tmp_path, kind=manifest_kind)

    with pytest.raises(GraphMismatch, match=r"the input is tensor\("):
        engine_of(manifest, tinymodel.graph(graph_kind))


@pytest.mark.parametrize(("declared", "actual"), [(None, 1), (1, None)], ids=["any", "one"])
def test_engine_different_batch_size_refused(tmp_path, declared, actual):
    manifest = tinymodel.write_version(tmp_path, batch=declared)

    with pytest.raises(GraphMismatch, match="input's shape"):
        engine_of(manifest, tinymodel.graph(batch=actual))


def test_engine_different_image_size_refused(manifest):
    wrong = changed(
        manifest, input=manifest.graph.input.model_copy(update={"shape": (None, 9, 9, 3)})
    )

    with pytest.raises(GraphMismatch, match="input's shape"):
        engine_of(wrong, tinymodel.graph())


def test_engine_missing_output_refused(manifest):
    outputs = (manifest.graph.outputs[0].model_copy(update={"name": "scores"}),)

    with pytest.raises(GraphMismatch, match="no output 'scores'"):
        engine_of(changed(manifest, outputs=outputs), tinymodel.graph())


def test_engine_different_number_of_classes_refused(manifest):
    wrong = manifest.model_copy(update={"labels": manifest.labels[:2]})

    with pytest.raises(GraphMismatch, match="returns 3 classes, the manifest has 2 labels"):
        engine_of(wrong, tinymodel.graph())


def node(name: str, kind: str, shape: list[Any]) -> SimpleNamespace:
    return SimpleNamespace(name=name, type=kind, shape=shape)


@pytest.mark.parametrize(
    ("input_shape", "output_shape"),
    [(["N", "H", "W", "C"], ["N", "classes"]), (["N", 8, 8, 3], [])],
    ids=["symbolic", "unknown_output"],
)
def test_engine_symbolic_dimensions_are_accepted(manifest, input_shape, output_shape):
    session = SimpleNamespace(
        get_inputs=lambda: [node("image", "tensor(uint8)", input_shape)],
        get_outputs=lambda: [node("probabilities", "tensor(float)", output_shape)],
    )

    assert OnnxEngine(ProviderSession(session, "cpu"), manifest)


def test_engine_input_of_different_rank_refused(manifest):
    session = SimpleNamespace(
        get_inputs=lambda: [node("image", "tensor(uint8)", ["N", 8, 8])],
        get_outputs=lambda: [node("probabilities", "tensor(float)", ["N", 3])],
    )

    with pytest.raises(GraphMismatch, match="input's shape"):
        OnnxEngine(ProviderSession(session, "cpu"), manifest)


# Interrupted runs


def rows(count: int = 1) -> np.ndarray[Any, Any]:
    return np.zeros((count, tinymodel.SIDE_PX, tinymodel.SIDE_PX, 3), np.uint8)


def is_computing(thread: threading.Thread) -> bool:
    """Returns whether a thread has used more CPU time than entering the runtime takes."""
    return thread.ident is not None and (
        time.clock_gettime(time.pthread_getcpuclockid(thread.ident)) > 0.1
    )


def test_engine_endless_run_is_ended_by_an_interrupt(manifest):
    engine, run = engine_of(manifest, tinymodel.endless_graph()), Run()
    errors: list[Exception] = []

    def endless() -> None:
        try:
            engine.run(rows(), run)
        except Exception as error:  # noqa: BLE001 - onnxruntime's own
            errors.append(error)

    thread = threading.Thread(target=endless, daemon=True)
    thread.start()
    wait_until(lambda: is_computing(thread))
    run.interrupt()
    thread.join(30)

    assert not thread.is_alive()
    assert "terminate" in str(errors[0]).lower()


def test_engine_run_interrupted_before_it_began_ends_at_once(manifest):
    engine, run = engine_of(manifest, tinymodel.endless_graph()), Run()
    run.interrupt()

    with pytest.raises(Exception, match=r"(?i)terminate"):
        engine.run(rows(), run)


def test_engine_run_interrupted_after_it_ended_changes_nothing(manifest):
    engine, run = engine_of(manifest, tinymodel.graph()), Run()
    before = engine.run(rows(), run)

    run.interrupt()

    assert np.array_equal(engine.run(rows(), Run()), before)


def test_engine_retry_with_the_same_run_can_be_interrupted(manifest):
    run = Run()
    engine_of(manifest, tinymodel.graph()).run(rows(2), run)
    run.interrupt()

    with pytest.raises(Exception, match=r"(?i)terminate"):
        engine_of(manifest, tinymodel.endless_graph()).run(rows(), run)


@pytest.mark.parametrize("order", ["before", "after"])
def test_run_interrupt_calls_a_callback_registered_before_or_after_it(order):
    run, calls = Run(), []
    steps = [run.interrupt, lambda: run.on_interrupt(lambda: calls.append(order))]

    for step in steps if order == "before" else reversed(steps):
        step()

    assert calls == [order]


def test_run_that_is_not_interrupted_calls_no_callback():
    run, calls = Run(), []

    run.on_interrupt(lambda: calls.append("x"))

    assert calls == []


# Runs with all cores


@pytest.mark.parametrize("count", [1, 5])
def test_engine_wide_runs_answer_the_same(manifest, count):
    all_cores = open_session(tinymodel.graph(), "cpu", threads=2, spinning=True)
    one_core = open_session(tinymodel.graph(), "cpu", threads=1)
    engine = OnnxEngine(one_core, manifest, all_cores)
    batch = np.random.default_rng(5).integers(0, 256, (count, 8, 8, 3), np.uint8)

    with_all_cores, with_one_core = (
        engine.run(batch, Run(all_cores=is_alone)) for is_alone in (True, False)
    )

    np.testing.assert_allclose(with_all_cores, with_one_core, atol=1e-6)


class RecordingSession:
    """A session that records its runs."""

    def __init__(self, name: str, runs: list[str]) -> None:
        self._session = open_session(tinymodel.graph(), "cpu", threads=1).session
        self._name, self._runs = name, runs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, *args: Any) -> Any:
        self._runs.append(self._name)
        return self._session.run(*args)


@pytest.mark.parametrize(
    ("run", "has_both", "expected"),
    [
        (Run(all_cores=True), True, "all_cores"),
        (Run(), True, "one_core"),
        (None, True, "one_core"),
        (Run(all_cores=True), False, "one_core"),
    ],
    ids=["all_cores", "one_core", "unspecified", "only_one"],
)
def test_engine_run_uses_the_wide_session_only_if_requested_and_available(
    manifest, run, has_both, expected
):
    runs: list[str] = []
    all_cores = ProviderSession(RecordingSession("all_cores", runs), "cpu") if has_both else None
    engine = OnnxEngine(
        ProviderSession(RecordingSession("one_core", runs), "cpu"), manifest, all_cores
    )

    engine.run(rows(), run)

    assert runs == [expected]

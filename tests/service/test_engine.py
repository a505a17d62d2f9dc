from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from contract.errors import GraphMismatch
from contract.images import decode
from contract.manifest import Manifest
from contract.preprocessing import to_input
from service.engine import OnnxEngine
from service.providers import ProviderSession, open_session
from tests import tinymodel


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


def test_engine_other_input_name_refused(manifest):
    wrong = changed(manifest, input=manifest.graph.input.model_copy(update={"name": "pixels"}))

    with pytest.raises(GraphMismatch, match="inputs are image, the manifest says pixels"):
        engine_of(wrong, tinymodel.graph())


@pytest.mark.parametrize(
    ("manifest_kind", "graph_kind"), [("uint8", "float32"), ("float32", "uint8")]
)
def test_engine_other_dtype_refused(tmp_path, manifest_kind, graph_kind):
    manifest = tinymodel.write_version(tmp_path, kind=manifest_kind)

    with pytest.raises(GraphMismatch, match=r"the input is tensor\("):
        engine_of(manifest, tinymodel.graph(graph_kind))


@pytest.mark.parametrize(("declared", "actual"), [(None, 1), (1, None)], ids=["any", "one"])
def test_engine_other_batch_size_refused(tmp_path, declared, actual):
    manifest = tinymodel.write_version(tmp_path, batch=declared)

    with pytest.raises(GraphMismatch, match="input's shape"):
        engine_of(manifest, tinymodel.graph(batch=actual))


def test_engine_other_sides_refused(manifest):
    wrong = changed(
        manifest, input=manifest.graph.input.model_copy(update={"shape": (None, 9, 9, 3)})
    )

    with pytest.raises(GraphMismatch, match="input's shape"):
        engine_of(wrong, tinymodel.graph())


def test_engine_missing_output_refused(manifest):
    outputs = (manifest.graph.outputs[0].model_copy(update={"name": "scores"}),)

    with pytest.raises(GraphMismatch, match="no output 'scores'"):
        engine_of(changed(manifest, outputs=outputs), tinymodel.graph())


def test_engine_other_number_of_classes_refused(manifest):
    wrong = manifest.model_copy(update={"labels": manifest.labels[:2]})

    with pytest.raises(GraphMismatch, match="answers 3 classes, the manifest has 2 labels"):
        engine_of(wrong, tinymodel.graph())


def node(name: str, kind: str, shape: list[Any]) -> SimpleNamespace:
    return SimpleNamespace(name=name, type=kind, shape=shape)


@pytest.mark.parametrize(
    ("input_shape", "output_shape"),
    [(["N", "H", "W", "C"], ["N", "classes"]), (["N", 8, 8, 3], [])],
    ids=["symbolic", "unknown_output"],
)
def test_engine_symbolic_sides_are_accepted(manifest, input_shape, output_shape):
    session = SimpleNamespace(
        get_inputs=lambda: [node("image", "tensor(uint8)", input_shape)],
        get_outputs=lambda: [node("probabilities", "tensor(float)", output_shape)],
    )

    assert OnnxEngine(ProviderSession(session, "cpu"), manifest)


def test_engine_input_of_other_rank_refused(manifest):
    session = SimpleNamespace(
        get_inputs=lambda: [node("image", "tensor(uint8)", ["N", 8, 8])],
        get_outputs=lambda: [node("probabilities", "tensor(float)", ["N", 3])],
    )

    with pytest.raises(GraphMismatch, match="input's shape"):
        OnnxEngine(ProviderSession(session, "cpu"), manifest)

import numpy as np
import onnx
import pytest

from contract.versions import sha256
from tests.training.export.test_edits import without_names
from tests.training.helpers import tinynet
from training.data.pictures import input_rows
from training.errors import QuantizationFailed
from training.evaluation.scorer import Scorer
from training.evaluation.session import open_session, run_rows
from training.export.gate import LowerPrecision, PrecisionReference
from training.export.int8 import make_int8, quantize
from training.export.weights.layers import Constants, find_layers
from training.export.weights.pairs import pairs_hold
from training.release.folders import FolderEvidence


@pytest.fixture
def rows(tiny_graph, colour_pictures):
    return input_rows(colour_pictures, tinynet.draft(tiny_graph))


@pytest.fixture
def precision_reference(tiny_graph, colour_pictures):
    answers = Scorer(tiny_graph, tinynet.draft(tiny_graph)).probabilities(colour_pictures)
    return PrecisionReference(
        colour_pictures, answers, np.array([p.index for p in colour_pictures])
    )


def test_quantized_graph_has_the_same_inputs_and_outputs(tiny_graph, rows):
    quantized = quantize(tiny_graph, rows)

    before, after = (onnx.load_model_from_string(data) for data in (tiny_graph, quantized))
    assert before.graph.input == after.graph.input
    assert [value.name for value in before.graph.output] == [
        value.name for value in after.graph.output
    ]
    assert {node.domain for node in after.graph.node} == {""}
    assert {entry.domain for entry in after.opset_import} == {""}


def test_quantized_graph_keeps_normalisation_and_softmax_in_float(tiny_graph, rows):
    nodes = onnx.load_model_from_string(quantize(tiny_graph, rows)).graph.node

    softmax = next(node for node in nodes if node.op_type == "Softmax")
    gemm = next(node for node in nodes if node.op_type == "Gemm")
    scale = next(node for node in nodes if node.op_type == "Mul")
    makers = {output: node.op_type for node in nodes for output in node.output}
    assert makers[softmax.input[0]] == gemm.op_type
    assert makers[scale.input[0]] == "Cast"


def test_no_pair_of_weights_exceeds_the_bound(tiny_graph, rows):
    graph = onnx.load_model_from_string(quantize(tiny_graph, rows)).graph

    layers, constants = find_layers(graph), Constants(graph)
    assert len(layers) == 2
    for layer in layers:
        assert pairs_hold(layer.to_rows(constants[layer.weights.values]))


def test_answers_are_closer_to_float_than_the_quantizer_alone(tiny_graph, rows, monkeypatch):
    exact = run_rows(open_session(tiny_graph), rows, "logits")
    chosen = quantize(tiny_graph, rows)
    monkeypatch.setattr("training.export.int8.choose_weights", lambda *_: None)
    plain = quantize(tiny_graph, rows)

    ours, theirs = (
        np.abs(run_rows(open_session(graph), rows, "logits") - exact).mean()
        for graph in (chosen, plain)
    )
    assert ours < theirs


def test_quantizing_twice_gives_the_same_bytes(tiny_graph, rows):
    assert quantize(tiny_graph, rows) == quantize(tiny_graph, rows)


def test_quantizing_an_empty_model_fails_in_one_line():
    with pytest.raises(QuantizationFailed, match="the quantizer failed"):
        quantize(onnx.ModelProto(ir_version=8).SerializeToString(), [])


def test_quantized_graph_of_unnamed_nodes_is_the_same(tiny_graph, rows):
    named, nameless = (
        onnx.load_model_from_string(quantize(graph, rows)).graph.node
        for graph in (tiny_graph, without_names(tiny_graph))
    )

    assert [node.op_type for node in nameless] == [node.op_type for node in named]


def test_int8_that_passes_the_gate_records_its_loss(
    tiny_graph, precision_reference, colours_dir, caplog
):
    folders = FolderEvidence(golden_dir=colours_dir, calibration_dir=colours_dir, n_calibration=5)
    unquantized = tinynet.draft(tiny_graph)

    draft = make_int8(
        unquantized,
        LowerPrecision("int8"),
        precision_reference,
        folders.calibration(unquantized),
    )

    assert draft.graph.sha256 == sha256(draft.model)
    assert draft.quantization
    assert draft.quantization.accuracy_drop_percent == 0.0
    assert draft.quantization.n_calibration_images == 5
    found = draft.quantization.against_float
    assert found
    assert (found.n_images, found.agreement_percent.value) == (9, 100.0)
    assert found.agreement_percent.low < found.agreement_percent.high == 100.0
    assert found.drop_percent
    assert found.drop_percent.low < found.drop_percent.value == 0.0
    assert 0 <= found.mean_kl.low <= found.mean_kl.value <= found.mean_kl.high < 0.015
    assert draft.quantization.calibration_data == f"pictures of the folder {colours_dir.name}"
    assert "same first class as float in 100.00%" in caplog.messages[-1]

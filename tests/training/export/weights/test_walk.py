import numpy as np
import onnx
import pytest

from tests.training.helpers import tinynet
from training.data.pictures import input_rows
from training.evaluation.session import SessionPlan, open_session
from training.export.edits import prepare_graph
from training.export.int8 import quantize
from training.export.weights.layers import find_layers
from training.export.weights.walk import Walk


@pytest.fixture
def rows(tiny_graph, colour_pictures):
    return input_rows(colour_pictures, tinynet.draft(tiny_graph)) * 3  # more than one batch


def _expected(model, name, rows):
    extended = onnx.ModelProto.FromString(model.SerializeToString())
    extended.graph.output.append(onnx.ValueInfoProto(name=name))
    session = open_session(extended.SerializeToString(), SessionPlan(optimise=False))
    return session.run([name], {session.get_inputs()[0].name: np.stack(rows)})[0]


def test_inputs_of_the_layers_are_those_of_a_whole_run(tiny_graph, rows):
    model = onnx.load_model_from_string(quantize(tiny_graph, rows))
    layers = find_layers(model.graph)

    walk = Walk(model, rows)
    for layer in layers:
        walk.run_to(layer.node.name)
        expected = _expected(model, layer.source.values, rows)
        np.testing.assert_array_equal(walk.tensor(layer.source.values), expected)
    assert len(layers) == 2


def test_a_float_graph_runs_in_steps(tiny_graph, rows):
    model = prepare_graph(tiny_graph)
    last = next(node for node in model.graph.node if node.op_type == "Gemm")

    walk = Walk(model, rows)
    walk.run_to(last.name)

    np.testing.assert_array_equal(walk.tensor(last.input[0]), _expected(model, last.input[0], rows))


def test_tensors_that_no_later_step_reads_are_dropped(tiny_graph, rows):
    model = prepare_graph(tiny_graph)
    walk = Walk(model, rows)

    walk.run_to(next(node.name for node in model.graph.node if node.op_type == "Gemm"))

    with pytest.raises(KeyError):
        walk.tensor(model.graph.input[0].name)

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

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


@pytest.mark.parametrize("keepdims", [0, 1])
def test_a_tensor_without_a_batch_axis_stays_as_it_is(keepdims):
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=keepdims),
        helper.make_node("Identity", ["x"], ["y"], name="middle"),
        helper.make_node("Add", ["y", "largest"], ["z"], name="last"),
        helper.make_node("Identity", ["z"], ["end"], name="end"),
    ]
    ends = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2]) for n in ("x", "end"))
    graph = helper.make_graph(nodes, "graph", [next(ends)], [next(ends)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rows = list(np.arange(80, dtype=np.float32).reshape(40, 2))  # three batches
    walk = Walk(model, rows)

    walk.run_to("middle")
    walk.run_to("last")
    walk.run_to("end")

    assert walk.tensor("z").shape == (40, 2)
    assert walk.tensor("z")[:, 0].tolist() == [
        row[0] + max(other[1] for other in rows[i // 16 * 16 : i // 16 * 16 + 16])
        for i, row in enumerate(rows)
    ]

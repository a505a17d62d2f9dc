"""Float16 graphs: what stays float32, how close the answers are, and which ones overflow."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from contract.versions import sha256
from tests import tinymodel
from tests.training.export.test_edits import without_names
from tests.training.helpers import tinynet
from training.errors import HalfPrecisionFailed
from training.evaluation.scorer import Scorer
from training.evaluation.session import SessionPlan, open_session
from training.export.export import export
from training.export.fp16 import METHOD, emulate_fp16, make_fp16, probability_nodes, to_half
from training.export.gate import LowerPrecision, PrecisionReference
from training.export.lower import lower

FP16 = LowerPrecision("fp16")
# Of a probability: float16 keeps 11 bits, and a few rounding errors add up.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def half(tiny_graph):
    return to_half(tiny_graph)


def parsed(graph):
    return onnx.load_model_from_string(graph).graph


def pixels(n):
    generator = np.random.default_rng(n)
    return generator.integers(0, 256, (n, tinynet.SIDE_PX, tinynet.SIDE_PX, 3), dtype=np.uint8)


def answers(graph, image, plan=None):
    """Returns the outputs of a graph by name."""
    session = open_session(graph, plan)
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": image}), strict=True))


def scaled(graph, **factors):
    """Returns the graph with weights multiplied: conv=..., classifier=..."""
    model = onnx.load_model_from_string(graph)
    for tensor in model.graph.initializer:
        for part, factor in factors.items():
            if f".{part}." in tensor.name:
                values = numpy_helper.to_array(tensor) * np.float32(factor)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model.SerializeToString()


def test_half_graph_has_the_same_inputs_and_outputs(tiny_graph, half):
    before, after = parsed(tiny_graph), parsed(half)

    assert before.input == after.input
    assert [value.name for value in before.output] == [value.name for value in after.output]
    for value in after.output:
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert {node.domain for node in after.node} == {""}


def test_half_graph_has_float16_weights(half):
    types = {tensor.name: tensor.data_type for tensor in parsed(half).initializer}

    weights = [name for name in types if name.endswith(".weight")]
    assert len(weights) == 2
    assert {types[name] for name in weights} == {TensorProto.FLOAT16}


def test_half_graph_of_a_large_classifier_is_half_the_size():
    network = tinynet.TinyNet(20_000).eval()
    graph = export(tinynet.wrapped(network), tinynet.SIDE_PX)

    assert len(to_half(graph)) == pytest.approx(len(graph) / 2, rel=0.02)


def test_half_graph_keeps_normalisation_and_softmax_in_float32(half):
    graph = parsed(half)

    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    by_operator = {node.op_type: node for node in graph.node}
    factors = [by_operator[operator].input[1] for operator in ("Mul", "Add")]
    assert [types[name] for name in factors] == [TensorProto.FLOAT, TensorProto.FLOAT]
    assert [node.op_type for node in graph.node].count("Cast") == 6  # no round trips
    assert makers[by_operator["Conv"].input[0]].op_type == "Cast"
    cast = makers[by_operator["Softmax"].input[0]]
    assert (cast.op_type, makers[cast.input[0]].op_type) == ("Cast", "Gemm")
    assert list(by_operator["Softmax"].output) == ["probabilities"]


def test_probability_nodes_include_the_temperature_but_not_the_classifier():
    graph = parsed(export(tinynet.wrapped(temperature=2.0), tinynet.SIDE_PX))

    operators = {node.name: node.op_type for node in graph.node}
    found = [operators[name] for name in probability_nodes(graph)]
    assert found[0] == "Softmax"
    assert set(found[1:]) <= {"Div", "Mul"}
    assert len(found) == 2


@pytest.mark.parametrize(("output", "kept"), [("b", ["last"]), ("c", [])])
def test_probability_nodes_include_a_sigmoid_only_as_an_output(output, kept):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("Sigmoid", ["a"], ["b"], name="last"),
        helper.make_node("Mul", ["a", "b"], ["c"], name="silu"),
    ]
    graph = helper.make_graph(nodes, "g", [], [helper.make_empty_tensor_value_info(output)])

    assert probability_nodes(graph) == kept


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("as_in_float16", [False, True], ids=["as-it-is", "rounded"])
def test_half_graph_answers_are_close_to_float32(tiny_graph, half, n, as_in_float16):
    image = pixels(n)

    found = answers(emulate_fp16(half) if as_in_float16 else half, image)

    expected = answers(tiny_graph, image)
    assert found.keys() == expected.keys()
    assert found["probabilities"].dtype == np.float32
    assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=TOLERANCE)
    assert found["probabilities"].sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert found["logits"] == pytest.approx(expected["logits"], rel=TOLERANCE, abs=TOLERANCE)


def test_half_conversion_twice_gives_the_same_bytes(tiny_graph, half):
    assert to_half(tiny_graph) == half


def test_half_graph_of_unnamed_nodes_has_the_same_types(tiny_graph, half):
    types = [
        sorted(tensor.data_type for tensor in parsed(graph).initializer)
        for graph in (to_half(without_names(tiny_graph)), half)
    ]

    assert types[0] == types[1]


def foreign():
    """Returns a graph unlike our exports: float32 NCHW input, batch norm, upsampling."""
    generator = np.random.default_rng(0)
    vectors = ("scale", "bias", "mean", "variance")
    shapes = {"weight": (4, 3, 3, 3), "last": (4, 3), **dict.fromkeys(vectors, (4,))}
    values = {name: generator.uniform(0.5, 1.5, shape) for name, shape in shapes.items()}
    values["sides"] = np.array([1, 1, 2, 2])

    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "variance"], ["b"]),
        helper.make_node("Resize", ["b", "", "sides"], ["c"], mode="nearest"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "last"], ["logits"]),
    ]

    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(one.astype(np.float32), name) for name, one in values.items()],
    )
    opset = [helper.make_opsetid("", 13)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


@pytest.mark.parametrize("as_in_float16", [False, True], ids=["as-it-is", "rounded"])
def test_half_graph_of_a_foreign_one_has_float32_inputs_and_outputs(as_in_float16):
    half = to_half(foreign())
    image = np.random.default_rng(1).uniform(0, 1, (3, 3, 8, 8)).astype(np.float32)

    found = answers(emulate_fp16(half) if as_in_float16 else half, image)["logits"]

    assert found.dtype == np.float32
    assert found == pytest.approx(answers(foreign(), image)["logits"], rel=5e-3)


@pytest.mark.parametrize(
    "plan", [SessionPlan(), SessionPlan(optimise=False)], ids=["optimised", "as-written"]
)
def test_emulated_graph_overflows_where_the_cpu_does_not(tiny_graph, plan):
    large = to_half(scaled(tiny_graph, classifier=1e5))

    assert not np.isfinite(answers(emulate_fp16(large), pixels(2), plan)["probabilities"]).all()


def test_emulated_results_are_float16_numbers(half):
    logits = answers(emulate_fp16(half), pixels(3))["logits"]

    assert (logits.astype(np.float16).astype(np.float32) == logits).all()


def test_half_conversion_of_an_empty_model_fails_in_one_line():
    with pytest.raises(HalfPrecisionFailed, match="the conversion failed"):
        to_half(onnx.ModelProto(ir_version=8).SerializeToString())


def test_half_conversion_of_a_graph_without_products_is_refused():
    with pytest.raises(HalfPrecisionFailed, match="no convolution or matrix product"):
        to_half(tinymodel.graph())


OVERFLOWS = [
    pytest.param(
        {"conv": 1e-5, "classifier": 1e7},
        "fp16 differs too much from float",
        id="weights-too-large",
    ),
    pytest.param({"classifier": 1e5}, "not finite", id="logits-too-large"),
]


def reference_for(graph, pictures):
    answers = Scorer(graph, tinynet.draft(graph)).probabilities(pictures)
    return PrecisionReference(pictures, answers, np.array([picture.index for picture in pictures]))


def test_fp16_that_passes_the_gate_records_its_loss(tiny_graph, colour_pictures, caplog):
    draft = make_fp16(tinynet.draft(tiny_graph), FP16, reference_for(tiny_graph, colour_pictures))

    assert draft.graph.sha256 == sha256(draft.model)
    assert draft.precision == "fp16"
    assert draft.half_precision
    assert draft.half_precision.method == METHOD
    assert draft.half_precision.accuracy_drop_percent == 0.0
    assert draft.half_precision.top1_agreement_percent == 100.0
    assert 0 < draft.half_precision.max_abs_difference < 2e-3
    assert "same first class as float in 100.00%" in caplog.messages[0]


@pytest.mark.parametrize(("factors", "message"), OVERFLOWS)
def test_fp16_that_overflows_is_refused(tiny_graph, colour_pictures, factors, message):
    large = scaled(tiny_graph, **factors)

    with pytest.raises(HalfPrecisionFailed, match=message):
        make_fp16(tinynet.draft(large), FP16, reference_for(large, colour_pictures))


@pytest.mark.parametrize(("factors", "message"), OVERFLOWS)
def test_fp16_that_overflows_falls_back_to_the_float_graph_if_allowed(
    tiny_graph, colour_pictures, caplog, factors, message
):
    large = scaled(tiny_graph, **factors)
    float_draft = tinynet.draft(large)

    draft = lower(
        float_draft,
        LowerPrecision("fp16", or_float=True),
        reference_for(large, colour_pictures),
        lambda _: pytest.fail("calibrated"),
    )

    assert draft is float_draft
    assert message in caplog.messages[-1]
    assert caplog.messages[-1].endswith("the float graph is published instead")

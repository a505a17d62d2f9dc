"""What the scores of a graph mean: shown by its last operators, or said by the user."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from training.errors import GraphRefused
from training.release.scores import (
    LastOperator,
    ScoreMeaning,
    check_order,
    decide,
    last_operator,
    with_rows,
)

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], np.float32)
ROUNDED = np.array([[0.7, 0.2, 0.0], [0.0, 0.0, 0.85]], np.float32)  # sums 0.9 and 0.85
BETWEEN_0_AND_1 = np.array([[0.9, 0.8, 0.1], [0.2, 0.9, 0.7]], np.float32)
SIGNED = np.array([[-3, 2, 1], [4, -1, 0]], np.float32)
POSITIVE = np.array([[3, 2, 1], [4, 9, 0]], np.float32)
PERCENTAGES = 100 * PROBABILITIES
ONE = np.array([[0.9], [0.2]], np.float32)
ONE_SIGNED = np.array([[-2.0], [5.0]], np.float32)

SOFTMAX = ScoreMeaning("probabilities", "softmax")
SIGMOID = ScoreMeaning("probabilities", "sigmoid")
LOGITS = ScoreMeaning("logits", "softmax")
LABEL_LOGITS = ScoreMeaning("logits", "sigmoid")


@pytest.mark.parametrize(
    ("last", "scores", "meaning"),
    [
        pytest.param(LastOperator("Softmax"), PROBABILITIES, SOFTMAX, id="softmax"),
        pytest.param(LastOperator("Softmax", True), ROUNDED, SOFTMAX, id="rounded-softmax"),
        pytest.param(LastOperator("LogSoftmax"), np.log(PROBABILITIES), LOGITS, id="log-softmax"),
        pytest.param(LastOperator("Sigmoid"), BETWEEN_0_AND_1, SIGMOID, id="sigmoid"),
        pytest.param(LastOperator("Sigmoid"), PROBABILITIES, SIGMOID, id="sigmoid-with-sums-of-1"),
        pytest.param(LastOperator("Sigmoid"), ONE, SIGMOID, id="one-sigmoid"),
        pytest.param(LastOperator("Gemm"), SIGNED, LOGITS, id="linear"),
        pytest.param(LastOperator("Gemm"), BETWEEN_0_AND_1, LOGITS, id="linear-between-0-and-1"),
        pytest.param(LastOperator("Conv"), ONE_SIGNED, LABEL_LOGITS, id="one-logit"),
        pytest.param(LastOperator("Div"), PROBABILITIES, SOFTMAX, id="decomposed-softmax"),
        pytest.param(LastOperator("Mul"), SIGNED, LOGITS, id="scaled"),
        pytest.param(LastOperator("GlobalAveragePool"), POSITIVE, LOGITS, id="squeezenet"),
    ],
)
def test_meaning_of_scores_follows_from_the_graph(last, scores, meaning):
    assert decide(last, scores, None, None) == meaning


@pytest.mark.parametrize(
    ("last", "scores", "kind", "activation", "meaning"),
    [
        pytest.param("Gemm", SIGNED, None, "sigmoid", LABEL_LOGITS, id="logits-of-labels"),
        pytest.param("Gemm", SIGNED, "logits", "sigmoid", LABEL_LOGITS, id="both"),
        pytest.param("Gemm", PROBABILITIES, "logits", None, LOGITS, id="logits-with-sums-of-1"),
        pytest.param("Gemm", PROBABILITIES, "probabilities", None, SOFTMAX, id="mixed-softmax"),
        pytest.param(
            "Clip", BETWEEN_0_AND_1, "probabilities", "sigmoid", SIGMOID, id="probabilities"
        ),
        pytest.param("Clip", ROUNDED, "probabilities", "softmax", SOFTMAX, id="rounded"),
        pytest.param("Clip", BETWEEN_0_AND_1, "logits", None, LOGITS, id="logits"),
        pytest.param("Mul", SIGNED, None, "sigmoid", LABEL_LOGITS, id="signed-with-sigmoid"),
        pytest.param("Clip", ONE, "probabilities", None, SIGMOID, id="one-probability"),
        pytest.param("Tanh", SIGNED, "logits", None, LOGITS, id="bounded"),
    ],
)
def test_meaning_of_scores_that_the_graph_leaves_open_is_what_the_user_says(
    last, scores, kind, activation, meaning
):
    assert decide(LastOperator(last), scores, kind, activation) == meaning


@pytest.mark.parametrize(
    ("last", "scores"),
    [
        pytest.param("Clip", BETWEEN_0_AND_1, id="between-0-and-1"),
        pytest.param("Clip", ROUNDED, id="rounded"),
        pytest.param("Mul", PERCENTAGES, id="percentages"),
        pytest.param("Mul", PERCENTAGES.round(), id="rounded-percentages"),
        pytest.param("Mul", 256 * PROBABILITIES, id="shares-of-256"),
        pytest.param("Tanh", SIGNED, id="tanh"),
        pytest.param("Log", np.log(BETWEEN_0_AND_1), id="log-sigmoid"),
        pytest.param("Gemm", PROBABILITIES, id="linear-with-sums-of-1"),
        pytest.param("Clip", ONE, id="one-score"),
        pytest.param("Mul", ONE_SIGNED, id="one-signed-score"),
    ],
)
def test_scores_in_doubt_are_refused_with_the_flags_that_settle_it(last, scores):
    with pytest.raises(GraphRefused, match=rf"ends in {last}.*--scores logits.*--activation"):
        decide(LastOperator(last), scores, None, None)


@pytest.mark.parametrize(
    ("last", "scores", "kind", "activation", "message"),
    [
        pytest.param("Softmax", PROBABILITIES, "logits", None, "ends in Softmax", id="softmax"),
        pytest.param("Sigmoid", ONE, "logits", None, "ends in Sigmoid", id="sigmoid"),
        pytest.param("LogSoftmax", SIGNED, "probabilities", None, "LogSoftmax", id="log-softmax"),
        pytest.param("Softmax", PROBABILITIES, None, "sigmoid", "ends in Softmax", id="labels"),
        pytest.param("Sigmoid", BETWEEN_0_AND_1, None, "softmax", "ends in Sigmoid", id="label"),
        pytest.param("Gemm", SIGNED, "probabilities", None, "not between 0 and 1", id="range"),
        pytest.param(
            "Clip", BETWEEN_0_AND_1, "probabilities", None, "no softmax.*--activation", id="sums"
        ),
        pytest.param("Softmax", BETWEEN_0_AND_1, None, None, "not over the classes", id="axis"),
        pytest.param("Gemm", ONE_SIGNED, None, "softmax", "always 1", id="softmax-of-one"),
        pytest.param("Softmax", np.ones((2, 1), np.float32), None, None, "always 1", id="one"),
    ],
)
def test_scores_that_contradict_the_graph_or_the_user_are_refused(
    last, scores, kind, activation, message
):
    with pytest.raises(GraphRefused, match=message):
        decide(LastOperator(last), scores, kind, activation)


def model_of(*steps: tuple[str, ...], n_scores: int | None = 3) -> onnx.ModelProto:
    """Returns a graph of operators in a row; each is a name and its constant inputs."""
    nodes, name = [], "x"
    for number, (operator, *others) in enumerate(steps):
        nodes.append(helper.make_node(operator, [name, *others], [f"y{number}"]))
        name = f"y{number}"
    constants = [
        numpy_helper.from_array(np.eye(3, dtype=np.float32), "matrix"),
        numpy_helper.from_array(np.ones((3, 1), np.float32), "column"),
        numpy_helper.from_array(np.array(1 / 256, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.uint8), "zero"),
        numpy_helper.from_array(np.array([-1, 3]), "shape"),
        numpy_helper.from_array(np.array([1]), "axes"),
    ]
    sides: list[str | int] = ["N"] if n_scores is None else ["N", n_scores]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, sides)],
            constants,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


QDQ = (("QuantizeLinear", "scale", "zero"), ("DequantizeLinear", "scale", "zero"))


@pytest.mark.parametrize(
    ("steps", "last"),
    [
        pytest.param([("Softmax",)], LastOperator("Softmax"), id="softmax"),
        pytest.param([("Softmax",), *QDQ], LastOperator("Softmax", True), id="quantized"),
        pytest.param(
            [("Sigmoid",), ("Reshape", "shape"), ("Identity",)],
            LastOperator("Sigmoid"),
            id="reshaped",
        ),
        pytest.param([("MatMul", "matrix"), ("Add", "scale")], LastOperator("Gemm"), id="bias"),
        pytest.param(
            [("MatMul", "matrix"), *QDQ, ("Mul", "scale"), *QDQ],
            LastOperator("Gemm", True),
            id="scale",
        ),
        pytest.param([("Softmax",), ("Mul", "scale")], LastOperator("Mul"), id="percentages"),
        pytest.param([("Identity",)], LastOperator(""), id="nothing"),
    ],
)
def test_last_operator_is_found_behind_those_that_change_no_meaning(steps, last):
    model = model_of(*steps)

    assert last_operator(model, model.graph.output[0].name) == last


def test_two_scores_that_are_multiplied_are_not_linear():
    model = model_of(("MatMul", "matrix"))
    model.graph.node.append(helper.make_node("Mul", ["y0", "y0"], ["squares"]))

    assert last_operator(model, "squares") == LastOperator("Mul")


@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        pytest.param("probabilities", [[0.5, 0.5], [0.75, 0.25]], id="probability"),
        pytest.param("logits", [[0.37754067, 0.62245933], [0.4378235, 0.5621765]], id="logit"),
        pytest.param(None, [[0.5], [0.25]], id="one-class"),
    ],
)
def test_one_score_gets_the_rows_that_the_service_needs(kind, answer, squeezed):
    steps = [("MatMul", "column")] + ([("Squeeze", "axes")] if squeezed else [])
    model = model_of(*steps, n_scores=None if squeezed else 1)
    output = model.graph.output[0].name

    data, name = with_rows(model, output, kind)

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    rows = np.array([[0.25, 0.25, 0], [0, 0, 0.25]], np.float32)
    np.testing.assert_allclose(session.run([name], {"x": rows})[0], answer, atol=1e-6)


@pytest.mark.parametrize(
    "operators",
    [
        pytest.param(["TopK"], id="last"),
        pytest.param(["Softmax", "TopK"], id="behind-a-softmax"),
        pytest.param(["TopK", "Softmax"], id="before-a-softmax"),
    ],
)
def test_sorted_scores_are_refused(operators):
    model = model_of(*((name, "count") if name == "TopK" else (name,) for name in operators))

    with pytest.raises(GraphRefused, match="sorts its scores"):
        check_order(model, model.graph.output[0].name)


def test_sorting_inside_of_a_network_is_no_sorting_of_scores():
    inside = model_of(("TopK", "count"), ("MatMul", "matrix"), ("Softmax",))
    at_the_end = model_of(("MatMul", "matrix"), ("TopK", "count"), ("Softmax",))
    refused = []

    for model in (inside, at_the_end):
        try:
            check_order(model, model.graph.output[0].name)
        except GraphRefused:
            refused.append(model)

    assert refused == [at_the_end]

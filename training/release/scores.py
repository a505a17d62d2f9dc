"""What the scores of a foreign graph mean: its last operators say it, or the user does.

Probabilities that go through another softmax, or logits that are served as probabilities, look plausible
and are wrong. So values alone decide only where no other reading is left; else the import is refused.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from contract.manifest import Activation
from training.errors import GraphRefused

ScoreKind = Literal["logits", "probabilities"]

# They change the shape or the number format of scores, not what they mean.
_PASSING: Final = frozenset(
    ["Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Cast", "Dropout"]
)
_ACTIVATIONS: Final = frozenset(["Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid"])
_QUANTIZING: Final = frozenset(("QuantizeLinear", "DequantizeLinear"))
_LINEAR: Final = frozenset(
    ["Gemm", "MatMul", "Conv", "QLinearMatMul", "QLinearConv", "BatchNormalization"]
)
_AFFINE: Final = frozenset(("Add", "Sub", "Mul", "Div"))  # if one side is constant
# Their values look like logits, but no softmax or sigmoid belongs behind them.
_BOUNDED: Final = frozenset(["Tanh", "Softsign", "Log", "LogSigmoid", "Erf", "Sign"])

_MAX_SUM_ERROR: Final = 1e-3  # float32
_MAX_SUM_ERROR_SHOWN: Final = 1e-2  # where the graph shows a softmax, perhaps in float16
_MAX_RANGE_ERROR: Final = 4e-7  # rounds to 0 or 1 in an answer
_FLAGS: Final = (
    "Say --scores logits or --scores probabilities, and --activation softmax (one label for a picture) "
    "or --activation sigmoid (any number of labels)"
)


@dataclass(frozen=True, slots=True)
class ScoreMeaning:
    """How scores become probabilities; see `contract.predictions.to_probabilities`."""

    kind: ScoreKind
    activation: Activation

    def __str__(self) -> str:
        labels = "one label" if self.activation == "softmax" else "any number of labels"
        return f"{self.kind}, {self.activation} ({labels} for a picture)"


@dataclass(frozen=True, slots=True)
class LastOperator:
    """The operator that computes the scores, "" if there is none.

    Operators that only change shape or number format are skipped.
    """

    name: str
    quantized: bool = False  # the scores are rounded afterwards

    @property
    def kind(self) -> ScoreKind | None:
        if self.name in ("Softmax", "Sigmoid", "HardSigmoid"):
            return "probabilities"
        # The softmax of log-probabilities is the probabilities.
        return "logits" if self.name == "LogSoftmax" or self.is_linear else None

    @property
    def activation(self) -> Activation | None:
        if self.name in ("Softmax", "LogSoftmax"):
            return "softmax"
        return "sigmoid" if self.name in ("Sigmoid", "HardSigmoid") else None

    @property
    def is_linear(self) -> bool:
        return self.name in _LINEAR


def last_operator(model: onnx.ModelProto, output: str) -> LastOperator:
    """Finds the operator that computes an output."""
    producers = {name: node for node in model.graph.node for name in node.output if name}
    constants = {tensor.name for tensor in model.graph.initializer}
    quantized = False
    node = producers.get(output)
    while node is not None and node.op_type in _PASSING | _QUANTIZING:
        quantized = quantized or node.op_type in _QUANTIZING
        output = node.input[0]
        node = producers.get(output)
    if node is None:
        return LastOperator("", quantized)
    if node.op_type in _AFFINE and _is_linear(node, producers, constants):
        return LastOperator("Gemm", quantized)
    return LastOperator(node.op_type, quantized)


def check_order(model: onnx.ModelProto, output: str) -> None:
    """Checks that the place of a score tells its class.

    Raises:
        GraphRefused: the graph sorts the scores.
    """
    producers = {name: node for node in model.graph.node for name in node.output if name}
    node = producers.get(output)
    while node is not None and node.op_type in _PASSING | _QUANTIZING | _ACTIVATIONS:
        node = producers.get(node.input[0])
    if node is not None and node.op_type == "TopK":
        raise GraphRefused(
            "the graph sorts its scores (TopK), so their places do not tell the classes; export the network "
            "without it, since the service ranks the classes itself"
        )


def _is_linear(
    node: onnx.NodeProto, producers: dict[str, onnx.NodeProto], constants: set[str]
) -> bool:
    # A bias or a scale behind a linear layer.
    name = node.op_type
    for _ in range(len(producers)):
        if name in _LINEAR:
            return True
        if name not in _AFFINE | _PASSING | _QUANTIZING:
            return False
        free = [one for one in _data_inputs(node) if not _is_constant(one, producers, constants)]
        if len(free) != 1 or free[0] not in producers:
            return False
        node = producers[free[0]]
        name = node.op_type
    return False


def _data_inputs(node: onnx.NodeProto) -> list[str]:
    return list(node.input if node.op_type in _AFFINE else node.input[:1])


def _is_constant(name: str, producers: dict[str, onnx.NodeProto], constants: set[str]) -> bool:
    node = producers.get(name)
    if node is None:
        return name in constants
    if node.op_type == "Constant":
        return True
    return node.op_type in _PASSING | _QUANTIZING and _is_constant(
        node.input[0], producers, constants
    )


def decide(
    last: LastOperator,
    scores: NDArray[np.float32],
    kind: ScoreKind | None,
    activation: Activation | None,
) -> ScoreMeaning:
    """Decides what the scores mean.

    Args:
        last: of the graph.
        scores: float32, shape (N, C), of some pictures.
        kind: what the user says, None if nothing.
        activation: what the user says, None if nothing.

    Raises:
        GraphRefused: it is in doubt, or the user contradicts the graph or the scores.
    """
    _check_claims(last, kind, activation)
    if scores.shape[1] == 1 and (last.activation or activation) == "softmax":
        raise GraphRefused(
            "the graph has one score, and the softmax of one score is always 1; a network for two "
            "classes has two scores, or one with --activation sigmoid"
        )

    found = kind or _shown_kind(last, scores) or _kind_of_values(last, scores, activation)
    if found is None:
        raise GraphRefused(f"it is unclear what the scores are: {_facts(last, scores)}. {_FLAGS}")
    if found == "probabilities":
        _check_range(last, scores)
    how = activation or last.activation or _activation_of_values(found, scores)
    if how is None:
        raise GraphRefused(f"the scores are no softmax: {_facts(last, scores)}. {_FLAGS}")
    if found == "probabilities" and last.name == "Softmax" and not last.quantized:
        _check_sums(last, scores)
    return ScoreMeaning(found, how)


def _check_claims(
    last: LastOperator, kind: ScoreKind | None, activation: Activation | None
) -> None:
    # Behind a linear layer, the user may know better: mixed probabilities are linear too.
    if kind and last.kind and not last.is_linear and kind != last.kind:
        raise GraphRefused(
            f"--scores {kind} contradicts the graph, which ends in {last.name}: its scores are "
            f"{last.kind}"
        )
    if activation and last.activation and activation != last.activation:
        raise GraphRefused(
            f"--activation {activation} contradicts the graph, which ends in {last.name}"
        )


def _shown_kind(last: LastOperator, scores: NDArray[np.float32]) -> ScoreKind | None:
    if last.is_linear and scores.shape[1] > 1 and _sum_to_1(scores, _MAX_SUM_ERROR):
        return None  # a linear layer behind a softmax?
    return last.kind


def _kind_of_values(
    last: LastOperator, scores: NDArray[np.float32], activation: Activation | None
) -> ScoreKind | None:
    if last.kind or last.name in _BOUNDED or scores.shape[1] == 1:
        return None
    if activation != "sigmoid" and _sum_to_1(scores, _MAX_SUM_ERROR):
        return "probabilities"
    if scores.min() < 0:
        return "logits"
    # Percentages have no sign either, but their sums are all the same.
    sums = scores.sum(axis=1)
    may_be_shares = np.ptp(sums) <= _MAX_SUM_ERROR * sums.max() or (np.abs(sums - 100) < 1).all()
    return "logits" if scores.max() > 1 and not may_be_shares else None


def _activation_of_values(kind: ScoreKind, scores: NDArray[np.float32]) -> Activation | None:
    if scores.shape[1] == 1:
        return "sigmoid"
    # By convention, and `import` says so: nothing in a graph tells the two kinds of logits apart.
    return "softmax" if kind == "logits" or _sum_to_1(scores, _MAX_SUM_ERROR_SHOWN) else None


def _sum_to_1(scores: NDArray[np.float32], error: float) -> bool:
    return bool((scores >= 0).all() and (np.abs(scores.sum(axis=1) - 1) <= error).all())


def _check_range(last: LastOperator, scores: NDArray[np.float32]) -> None:
    if scores.min() < -_MAX_RANGE_ERROR or scores.max() > 1 + _MAX_RANGE_ERROR:
        raise GraphRefused(f"the scores are not between 0 and 1: {_facts(last, scores)}. {_FLAGS}")


def _check_sums(last: LastOperator, scores: NDArray[np.float32]) -> None:
    if not _sum_to_1(scores, _MAX_SUM_ERROR_SHOWN):
        raise GraphRefused(
            f"the softmax of the graph is not over the classes: {_facts(last, scores)}; export it with "
            "the softmax over the last axis, or without one"
        )


def _facts(last: LastOperator, scores: NDArray[np.float32]) -> str:
    sums = scores.sum(axis=1)
    end = f"the graph ends in {last.name}" if last.name else "the graph has no operators"
    return (
        f"{end}, and on {len(scores)} inputs its scores are {scores.min():.3g} to {scores.max():.3g} "
        f"with sums of {sums.min():.4g} to {sums.max():.4g}"
    )


def with_rows(
    model: onnx.ModelProto, output: str, kind: ScoreKind | None, n_scores: int = 1
) -> tuple[bytes, str]:
    """Gives a graph whose scores are no rows, or one score for each picture, the shape that the service needs.

    Args:
        model: the graph; it is changed.
        output: the scores, shape (N, C) or (N, C, 1, ...), or (N,) for one.
        kind: makes probabilities of two classes of one score: 1 - p, and p, the probability that the score
            stands for. None keeps the scores.
        n_scores: C.

    Returns:
        The graph, and the name of its new only output, shape (N, C), or (N, 2) with a kind.
    """
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)}
    names = (f"{output}_{i}" if i else f"{output}_rows" for i in range(len(taken) + 8))
    free: Iterator[str] = (name for name in names if name not in taken)

    shape, row, one, inverse = (next(free) for _ in range(4))
    steps: list[onnx.NodeProto] = [
        _constant(shape, np.array([-1, n_scores], np.int64)),
        helper.make_node("Reshape", [output, shape], [row]),
    ]
    if kind == "logits":
        probability = next(free)
        steps.append(helper.make_node("Sigmoid", [row], [probability]))
        row = probability
    n_classes = n_scores
    if kind is not None:
        both = next(free)
        steps += [
            _constant(one, np.ones((1, 1), np.float32)),
            helper.make_node("Sub", [one, row], [inverse]),
            helper.make_node("Concat", [inverse, row], [both], axis=1),
        ]
        row, n_classes = both, 2
    model.graph.node.extend(steps)
    del model.graph.output[:]
    batch = _first_axis(model)
    model.graph.output.append(
        helper.make_tensor_value_info(row, TensorProto.FLOAT, [batch, n_classes])
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True)), row


def _constant(name: str, value: NDArray[Any]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(value))


def _first_axis(model: onnx.ModelProto) -> int | str:
    initialized = {tensor.name for tensor in model.graph.initializer}
    entry = next(value for value in model.graph.input if value.name not in initialized)
    axis = entry.type.tensor_type.shape.dim[0]
    return axis.dim_value if axis.HasField("dim_value") else (axis.dim_param or "N")

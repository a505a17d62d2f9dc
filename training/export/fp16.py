"""fp16: converts a float graph to float16 and gates the loss.

onnxruntime's converter halves weights and results. The normalisation, the softmax, the inputs and the
outputs stay float32.

onnxruntime's CPU kernels compute a float16 graph in float32 and skip its roundings, so an overflow would
show only on a GPU. `emulate_fp16` makes a graph that rounds wherever a float16 processor would, on any
processor (docs/decisions/0025-float16-graphs.md).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from contract.manifest import HalfPrecision
from training.errors import GateFailed, HalfPrecisionFailed
from training.evaluation.scorer import Scorer
from training.evaluation.session import float16
from training.export.draft import Draft
from training.export.edits import (
    HEAVY,
    finish_graph,
    ignore_deprecations,
    normalisation_nodes,
    prepare_graph,
    replace_nodes,
    sort_nodes,
)
from training.export.gate import LowerPrecision, PrecisionReference, pass_gate

log = logging.getLogger(__name__)

METHOD: Final = (
    "float16 weights and results; normalisation, softmax or sigmoid, inputs and outputs in float32"
)


def make_fp16(draft: Draft, target: LowerPrecision, reference: PrecisionReference) -> Draft:
    """Returns the draft with a float16 graph and its `half_precision`, if it passes the gate.

    Raises:
        HalfPrecisionFailed: it cannot be made, loses more than the target allows, or overflows.
    """
    draft = draft.with_model(to_half(draft.model))
    # The gate sees the graph as a float16 processor would compute it.
    loss = pass_gate(_emulated_answers(draft, reference), reference, target)
    log.info(
        "fp16: probabilities differ by %.1g at most with every result rounded to float16",
        loss.max_difference,
    )

    cost = HalfPrecision(
        method=METHOD,
        accuracy_drop_percent=loss.drop_percent,
        top1_agreement_percent=loss.agreement_percent,
        against_float=loss.to_manifest(),
        max_abs_difference=loss.max_difference,
    )
    return replace(draft, half_precision=cost)


def _emulated_answers(draft: Draft, reference: PrecisionReference) -> NDArray[np.float32]:
    try:
        scorer = Scorer(emulate_fp16(draft.model), draft, prepare=reference.prepare)
        return scorer.probabilities(reference.pictures)
    except GateFailed as error:
        raise HalfPrecisionFailed(
            "in float16, whose largest number is 65,504, the graph returns values that are not finite"
        ) from error


def to_half(graph: bytes) -> bytes:
    """Returns a float16 ONNX file with the same inputs and outputs, self-contained.

    Raises:
        HalfPrecisionFailed: the converter fails, onnx's checker refuses the result, or nothing in the
            graph would be computed in float16.
    """
    try:
        with ignore_deprecations():
            model = prepare_graph(graph)
            kept = [*normalisation_nodes(model.graph), *probability_nodes(model.graph)]
            # The converter would take types an exporter noted for weights as those of results.
            del model.graph.value_info[:]
            model = float16().convert_float_to_float16(
                model, keep_io_types=True, node_block_list=kept
            )
            sort_nodes(model.graph)
            _skip_round_trips(model)
            half = finish_graph(model)
    except Exception as error:  # the converter raises whatever its steps raise
        raise HalfPrecisionFailed(f"the conversion failed: {error}") from error

    # Without a convolution or product in float16, the graph would be float16 in name only.
    types = _element_types(model)
    if not any(types.get(n) == TensorProto.FLOAT16 for n in _heavy_inputs(model.graph)):
        raise HalfPrecisionFailed(
            "the graph has no convolution or matrix product to compute in float16"
        )
    return half


def emulate_fp16(half: bytes) -> bytes:
    """Returns a graph that computes in float32 and rounds each result that `half` keeps in float16.

    Processors with float16 arithmetic sum in float32 and round what they store. This graph does the same
    on any processor, overflow included. It is for measuring, not for publishing.
    """
    model = onnx.load_model_from_string(half)
    types = _element_types(model)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(_widened(tensor))

    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        _widen(node)
        # A result `x` of float16 becomes x/wide -> Cast to float16 -> x/half -> Cast to float32 -> x.
        narrow = [name for name in node.output if types.get(name) == TensorProto.FLOAT16]
        for i, name in enumerate(node.output):
            node.output[i] = f"{name}/wide" if name in narrow else name
        nodes.append(node)
        for name in narrow:
            nodes += [
                helper.make_node(
                    "Cast", [f"{name}/wide"], [f"{name}/half"], to=TensorProto.FLOAT16
                ),
                helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT),
            ]

    replace_nodes(model.graph, nodes)
    del model.graph.value_info[:]
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def probability_nodes(graph: onnx.GraphProto) -> list[str]:
    """Returns the names of each softmax and of what feeds it alone, such as the temperature.

    A sigmoid counts if its result is an output: as an activation inside, it may be float16.
    """
    outputs = {value.name for value in graph.output}
    constants = {tensor.name for tensor in graph.initializer}
    feeding: set[str] = set()  # tensors on the way to a softmax
    names = []
    for node in reversed(graph.node):
        computed = [name for name in node.input if name and name not in constants]
        leads = feeding.intersection(node.output) and len(computed) == 1
        is_last = node.op_type == "Sigmoid" and outputs.intersection(node.output)
        if node.op_type == "Softmax" or is_last or (leads and node.op_type not in HEAVY):
            feeding.update(computed)
            names.append(node.name)
    return names


def _heavy_inputs(graph: onnx.GraphProto) -> list[str]:
    return [name for node in graph.node if node.op_type in HEAVY for name in node.input]


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    return types


def _skip_round_trips(model: onnx.ModelProto) -> None:
    # The converter casts to float16 and back between neighbours that both stay float32, and after a
    # softmax whose result is an output. Such a pair only loses precision.
    graph, types = model.graph, _element_types(model)
    makers = {name: node for node in graph.node for name in node.output}
    outputs = {value.name for value in graph.output}

    origins: dict[str, str] = {}  # result of a pair of casts -> the float32 tensor it came from
    for node in graph.node:
        narrow = makers.get(node.input[0]) if _casts_to(node, TensorProto.FLOAT) else None
        if narrow is not None and _casts_to(narrow, TensorProto.FLOAT16):
            origin = origins.get(narrow.input[0], narrow.input[0])
            if types.get(origin) == TensorProto.FLOAT:
                origins[node.output[0]] = origin

    renamed = {  # an output keeps its name, so the tensor it came from takes that name
        origin: name
        for name, origin in origins.items()
        if name in outputs and origin in makers and origin not in outputs
    }

    for node in graph.node:
        for i, name in enumerate(node.input):
            origin = origins.get(name, name)
            node.input[i] = renamed.get(origin, origin)
        for i, name in enumerate(node.output):
            spare = f"{name}/spare" if name in renamed.values() else name
            node.output[i] = renamed.get(name, spare)

    _drop_unused_nodes(graph)


def _casts_to(node: onnx.NodeProto, element_type: int) -> bool:
    target = next((one for one in node.attribute if one.name == "to"), None)
    return node.op_type == "Cast" and target is not None and target.i == element_type


def _drop_unused_nodes(graph: onnx.GraphProto) -> None:
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    replace_nodes(graph, kept[::-1])


def _widen(node: onnx.NodeProto) -> None:
    casts = _casts_to(node, TensorProto.FLOAT16)
    for attribute in node.attribute:
        if casts and attribute.name == "to":
            attribute.i = TensorProto.FLOAT
        if attribute.HasField("t"):
            attribute.t.CopyFrom(_widened(attribute.t))


def _widened(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type != TensorProto.FLOAT16:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)

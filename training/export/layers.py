"""Makes the graph that returns the values of every layer, for those who look inside a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import onnx

from contract.manifest import LayerOutput, Layers, Layout
from training.errors import ExportFailed, first_line
from training.evaluation.session import open_session
from training.export.draft import Draft
from training.export.edits import finish_graph

FILE: Final = "layers.onnx"

# They move values and compute nothing.
_MOVES: Final = frozenset(
    {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
# ONNX defines them for channels first.
_CHANNELS_FIRST: Final = frozenset(
    {"AveragePool", "Conv", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"}
)
_TO: Final[dict[tuple[int, ...], tuple[Layout, Layout]]] = {
    (0, 2, 3, 1): ("NCHW", "NHWC"),
    (0, 3, 1, 2): ("NHWC", "NCHW"),
}


def with_layers(draft: Draft) -> Draft:
    """Returns a draft with a float graph, and the graph of its layers as another file.

    The graph of the layers stays float if the draft's graph becomes int8 or float16.

    Raises:
        ExportFailed: it cannot be made, or onnxruntime does not run it.
    """
    try:
        graph, outputs = layers_graph(draft.model)
    except Exception as error:  # of onnx and onnxruntime, which have no base in common
        raise ExportFailed(
            f"the graph of the layers cannot be made: {first_line(error)}"
        ) from error
    return replace(
        draft, layers=Layers(file=FILE, outputs=outputs), files={**draft.files, FILE: graph}
    )


def layers_graph(graph: bytes) -> tuple[bytes, tuple[LayerOutput, ...]]:
    """Returns a float graph with the values of every layer as outputs, and their description.

    A layer is an operator that computes float32 values with one row for each picture. The values are
    vectors, (N, D), or have positions, (N, K, s, s) or (N, s, s, K).
    """
    model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(graph))
    known = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    weights = {tensor.name for tensor in model.graph.initializer}
    layouts = _layouts(model.graph)

    outputs = []
    for node in model.graph.node:
        value = known.get(node.output[0])
        if node.op_type in _MOVES or value is None or not _has_rows(value):
            continue
        outputs.append(
            LayerOutput(
                name=value.name,
                operator=node.op_type,
                module=_module(node, weights),
                layout=layouts.get(value.name) if _rank(value) == 4 else None,
            )
        )

    present = {value.name for value in model.graph.output}
    model.graph.output.extend(known[o.name] for o in outputs if o.name not in present)
    data = finish_graph(model)
    _check(data, outputs)
    return data, tuple(outputs)


def _layouts(graph: onnx.GraphProto) -> Mapping[str, Layout]:
    # Follows the axes from the operators that define them through those that keep them.
    found: dict[str, Layout] = {}
    for node in graph.node:
        inherited = next((found[name] for name in node.input if name in found), None)
        layout: Layout | None = inherited
        if node.op_type in _CHANNELS_FIRST:
            layout = "NCHW"
        elif node.op_type == "Transpose":
            order = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), ())
            before, after = _TO.get(order, (None, None))
            layout = after if inherited == before else None
        elif node.op_type == "Reshape":
            layout = None
        if layout is not None:
            found.update(dict.fromkeys(node.output, layout))
    return found


def _has_rows(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT or _rank(value) not in (2, 4):
        return False
    batch = tensor.shape.dim[0]
    return not batch.HasField("dim_value") or batch.dim_value == 1


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)


def _module(node: onnx.NodeProto, weights: set[str]) -> str | None:
    # Exporters name weights by module: "network.blocks.0.conv.weight".
    name = next((name for name in node.input if name in weights and name.endswith(".weight")), None)
    return None if name is None else re.sub(r"^network\.|\.weight$", "", name)


def _check(graph: bytes, outputs: list[LayerOutput]) -> None:
    # onnxruntime accepts the graph and computes every output.
    session = open_session(graph)
    (entry,) = session.get_inputs()
    shape = [side if isinstance(side, int) else 1 for side in entry.shape]
    dtype = np.uint8 if entry.type == "tensor(uint8)" else np.float32
    session.run([output.name for output in outputs], {entry.name: np.zeros(shape, dtype)})

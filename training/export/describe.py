"""Describes an ONNX file for the manifest, or refuses it with a reason.

A foreign file is a stranger's program for the runtime. It must therefore keep to what the service runs:
standard operators, everything in one file, one picture as input, one row of scores for each picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import onnx

from contract.manifest import Graph, GraphInput, GraphOutput, Layout
from contract.versions import sha256
from training.errors import GraphRefused, first_line

GRAPH_FILE: Final = "model.onnx"
DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})  # implemented by onnxruntime itself
MAX_GRAPH_BYTES: Final = 2**31 - 1  # protobuf's limit, and therefore that of one file
MIN_OPSET: Final = 7

_DTYPES: Final = {onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.FLOAT: "float32"}
Shape = tuple[int | None, ...]  # None where the axis is dynamic


def read_foreign(path: Path) -> bytes:
    """Reads a foreign ONNX file and checks everything except its inputs and outputs.

    Raises:
        GraphRefused: it is not a regular file, too large, not ONNX, invalid, uses an operator outside
            DOMAINS, refers to data outside the file, or holds training information.
    """
    if path.is_symlink() or not path.is_file():
        raise GraphRefused(f"{path.name}: not a regular file")
    if path.stat().st_size > MAX_GRAPH_BYTES:
        raise GraphRefused(f"{path.name}: larger than 2 GiB")

    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError is private to its backend
        raise GraphRefused(f"{path.name}: not an ONNX file") from error

    _check_contents(model, path.name)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphRefused(
            f"{path.name}: onnx's checker refuses it: {first_line(error)}"
        ) from error
    return data


def describe_export(graph: bytes, feature_layout: Layout = "NCHW") -> Graph:
    """Describes a graph of `training.export.export`, or one of lower precision made from it.

    The graph does not say `feature_layout`, the axes of its output `feature_map`.
    """
    model = onnx.load_model_from_string(graph)
    outputs = []
    for value in model.graph.output:
        layout = feature_layout if value.name == "feature_map" else None
        outputs.append({"name": value.name, "kind": value.name, "layout": layout})
    return Graph(
        file=GRAPH_FILE,
        sha256=sha256(graph),
        opset=_opset(model),
        input=describe_input(model),
        outputs=tuple(GraphOutput.model_validate(output) for output in outputs),
    )


def describe_input(model: onnx.ModelProto, layout: Layout | None = None) -> GraphInput:
    """Describes the only input of a graph.

    Args:
        model: the graph.
        layout: the axis order; by default it follows from the axis with three channels.

    Raises:
        GraphRefused: there is not exactly one input, or it is not a batch (dynamic, or fixed to 1) of
            square RGB pictures as float32 in either layout or as uint8 NHWC.
    """
    # Before IR version 4, weights are inputs too.
    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialized]
    if len(inputs) != 1:
        raise GraphRefused(f"the graph has {len(inputs)} inputs, not 1")

    value = inputs[0]
    dtype = _DTYPES.get(value.type.tensor_type.elem_type)
    shape = _shape(value)
    if dtype is None:
        raise GraphRefused("the input is neither float32 nor uint8")
    if len(shape) != 4:
        raise GraphRefused(f"the input has rank {len(shape)}, not 4")
    if shape[0] not in (None, 1):
        raise GraphRefused(f"the batch is fixed to {shape[0]}; export it with a dynamic batch")

    layout = layout or _find_layout(shape)
    if dtype == "uint8" and layout != "NHWC":
        raise GraphRefused("a uint8 input must be NHWC")
    height, width, channels = (shape[1:4]) if layout == "NHWC" else (*shape[2:4], shape[1])
    if channels != 3 or height is None or height != width:
        raise GraphRefused(
            f"the input is {_text(shape)}; expected a fixed square with 3 channels, {layout}"
        )

    return GraphInput.model_validate(
        {"name": value.name, "dtype": dtype, "layout": layout, "shape": shape}
    )


def describe_scores(model: onnx.ModelProto, n_classes: int, output: str | None = None) -> str:
    """Returns the name of the output that holds a float32 score for each class.

    Args:
        model: the graph.
        n_classes: C, the number of labels.
        output: its name, needed if there are several candidates.

    Raises:
        GraphRefused: there is no such output, there are several, or the number of classes differs.
    """
    found = {  # candidates: float32, shape (N, C)
        value.name: _shape(value)
        for value in model.graph.output
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and len(_shape(value)) == 2
    }
    if output is not None and output not in found:
        raise GraphRefused(f"no output {output!r} of shape (N, C); there are {sorted(found)}")

    names = [output] if output is not None else list(found)
    if len(names) != 1:
        raise GraphRefused(
            f"{len(names)} outputs of shape (N, C), not 1; name it with --output: {sorted(found)}"
        )

    classes = found[names[0]][1]
    if classes not in (None, n_classes):
        raise GraphRefused(f"the graph has {classes} classes, but there are {n_classes} labels")
    return names[0]


def describe_foreign(
    graph: bytes, graph_input: GraphInput, output: str, kind: Literal["logits", "probabilities"]
) -> Graph:
    return Graph(
        file=GRAPH_FILE,
        sha256=sha256(graph),
        opset=_opset(onnx.load_model_from_string(graph)),
        input=graph_input,
        outputs=(GraphOutput(name=output, kind=kind),),
    )


def _check_contents(model: onnx.ModelProto, name: str) -> None:
    domains = {entry.domain for entry in model.opset_import}
    domains.update(node.domain for node in _nodes(model))
    foreign = sorted(domains - DOMAINS)
    if foreign:
        raise GraphRefused(f"{name}: operators of the domain {foreign[0]!r} are not supported")
    if _opset(model) < MIN_OPSET:
        raise GraphRefused(f"{name}: opset {_opset(model)} is below {MIN_OPSET}")
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in _tensors(model)):
        raise GraphRefused(f"{name}: data outside the file is refused; save the model as one file")
    if model.training_info:
        raise GraphRefused(f"{name}: holds training information; export it for inference")


def _opset(model: onnx.ModelProto) -> int:
    return max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    # The graph, its functions, and the subgraphs of both (branches and loop bodies).
    pending: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    pending.append(attribute.g)
                pending.extend(attribute.graphs)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(model):
        if isinstance(graph, onnx.GraphProto):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _shape(value: onnx.ValueInfoProto) -> Shape:
    axes = value.type.tensor_type.shape.dim
    return tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in axes)


def _find_layout(shape: Shape) -> Layout:
    if shape[1] == 3 and shape[3] != 3:
        return "NCHW"
    if shape[3] == 3 and shape[1] != 3:
        return "NHWC"
    raise GraphRefused(
        f"the input is {_text(shape)}: which axis holds the channels? Set --input-layout"
    )


def _text(shape: Shape) -> str:
    return " x ".join("N" if axis is None else str(axis) for axis in shape)

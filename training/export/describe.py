"""Describes an ONNX file for the manifest, or refuses it with a reason.

The service runs graphs with one picture as input and one row of scores for each picture.
"""

from __future__ import annotations

from typing import Final, Literal

import onnx

from contract.manifest import Graph, GraphInput, GraphOutput, Layout
from contract.versions import sha256
from training.errors import GraphRefused

GRAPH_FILE: Final = "model.onnx"

_DTYPES: Final = {onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.FLOAT: "float32"}
_OTHER_FLOATS: Final = {
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}
_EXPORT_FLOAT32: Final = "export the network with float32 (--fp16 makes a float16 graph of it)"
Shape = tuple[int | None, ...]  # None where the axis is dynamic


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
        opset=opset_of(model),
        input=describe_input(model),
        outputs=tuple(GraphOutput.model_validate(output) for output in outputs),
    )


def describe_input(
    model: onnx.ModelProto, layout: Layout | None = None, size_px: int | None = None
) -> GraphInput:
    """Describes the only input of a graph.

    Args:
        model: the graph.
        layout: the axis order; by default it follows from the axis with three channels.
        size_px: the side of the pictures, for axes that the graph leaves open; in pixels.

    Raises:
        GraphRefused: there is not exactly one input, or it is not a batch (dynamic, or fixed to 1) of
            square RGB pictures as float32 in either layout or as uint8 NHWC.
    """
    # Before IR version 4, weights are inputs too.
    initialized = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialized]
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs)
        raise GraphRefused(f"the graph has {len(inputs)} inputs, not 1: {names}")

    value = inputs[0]
    dtype = _DTYPES.get(value.type.tensor_type.elem_type)
    shape = _shape(value)
    if dtype is None:
        name = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
        raise GraphRefused(f"the input is {name}, neither float32 nor uint8; {_EXPORT_FLOAT32}")
    if len(shape) != 4:
        raise GraphRefused(
            f"the input is {_text(shape)}, not pictures with 4 axes; a network that takes features instead "
            "of pictures, such as one of scikit-learn, cannot be served"
        )
    if shape[0] not in (None, 1):
        raise GraphRefused(
            f"the batch is fixed to {shape[0]} pictures; export it with a batch of 1 or with a dynamic "
            "batch axis (torch: dynamic_shapes, or dynamic_axes with dynamo=False)"
        )

    if 3 not in shape[1:] and 1 in (shape[1], shape[3]):
        raise GraphRefused(
            f"the input is {_text(shape)}, grey pictures, and the service sends RGB; export the network "
            "with a layer in front that makes them grey, such as torchvision.transforms.v2.Grayscale()"
        )

    layout = layout or _find_layout(shape)
    if dtype == "uint8" and layout != "NHWC":
        raise GraphRefused("a uint8 input must be NHWC")
    shape = _closed(shape, layout, size_px)
    height, width, channels = (shape[1:4]) if layout == "NHWC" else (*shape[2:4], shape[1])
    if channels != 3 or height is None or height != width:
        raise GraphRefused(
            f"the input is {_text(shape)}; expected a fixed square with 3 channels, {layout}"
        )

    return GraphInput.model_validate(
        {"name": value.name, "dtype": dtype, "layout": layout, "shape": shape}
    )


def describe_scores(model: onnx.ModelProto, n_classes: int, output: str | None = None) -> str:
    """Returns the name of the output that holds a float32 score for each class, as (N, C) or (N, C, 1, 1).

    With one or two labels, it may hold one score for each picture instead, as (N, 1) or (N,).

    Args:
        model: the graph.
        n_classes: C, the number of labels.
        output: its name, needed if there are several candidates.

    Raises:
        GraphRefused: there is no such output, there are several, or the number of classes differs.
    """
    floats = [value for value in model.graph.output if _is_float(value)]
    shapes = {value.name: _without_ones(_shape(value)) for value in floats}
    found = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    if not found and n_classes <= 2:  # one score for each picture, without an axis for it
        found = {name: (*shape, 1) for name, shape in shapes.items() if len(shape) == 1}
    if output is not None and output not in found:
        raise GraphRefused(f"no output {output!r} of shape (N, C); {_outputs_text(model)}")

    names = [output] if output is not None else list(found)
    if not names:
        others = {value.type.tensor_type.elem_type for value in model.graph.output} & _OTHER_FLOATS
        advice = f"; {_EXPORT_FLOAT32}" if others else ""
        raise GraphRefused(f"no output is float32 of shape (N, C); {_outputs_text(model)}{advice}")
    if len(names) != 1:
        raise GraphRefused(
            f"{len(names)} outputs of shape (N, C), not 1; name it with --output: {sorted(found)}"
        )

    classes = found[names[0]][1]
    if classes == 1 and n_classes == 2:
        return names[0]
    if classes not in (None, n_classes):
        raise GraphRefused(f"the graph has {classes} classes, but there are {n_classes} labels")
    return names[0]


def describe_foreign(
    graph: bytes, graph_input: GraphInput, output: str, kind: Literal["logits", "probabilities"]
) -> Graph:
    return Graph(
        file=GRAPH_FILE,
        sha256=sha256(graph),
        opset=opset_of(onnx.load_model_from_string(graph)),
        input=graph_input,
        outputs=(GraphOutput(name=output, kind=kind),),
    )


def opset_of(model: onnx.ModelProto) -> int:
    return max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def _outputs_text(model: onnx.ModelProto) -> str:
    texts = []
    for value in model.graph.output:
        if not value.type.HasField("tensor_type"):  # of ZipMap, which converters of classifiers add
            texts.append(
                f"{value.name!r} is a sequence or map, not a tensor; export it without ZipMap"
            )
            continue
        dtype = onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
        texts.append(f"{value.name!r} is {dtype} ({_text(_shape(value))})")
    return "; ".join(texts)


def _shape(value: onnx.ValueInfoProto) -> Shape:
    axes = value.type.tensor_type.shape.dim
    return tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in axes)


def _without_ones(shape: Shape) -> Shape:
    # A convolution as the last layer leaves (N, C, 1, 1).
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _closed(shape: Shape, layout: Layout, size_px: int | None) -> Shape:
    # An open axis accepts any size, so also the one of the pictures.
    usual = (size_px, size_px, 3) if layout == "NHWC" else (3, size_px, size_px)
    axes = zip(shape[1:], usual, strict=True)
    return (shape[0], *(size if axis is None else axis for axis, size in axes))


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

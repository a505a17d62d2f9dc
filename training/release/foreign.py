"""Reads an ONNX file of another tool as one self-contained graph, or refuses it with a reason.

A foreign file is a stranger's program for the runtime. It must therefore keep to what the service runs:
standard operators, and data from nowhere but its own folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

import onnx
from onnx.external_data_helper import load_external_data_for_tensor
from onnx.inliner import inline_local_functions

from training.errors import GraphRefused, first_line
from training.export.describe import opset_of
from training.export.edits import sort_nodes
from training.export.export import strip_history
from training.networks.contents import describe_other_content

DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})  # implemented by onnxruntime itself
MAX_GRAPH_BYTES: Final = 2**31 - 1  # protobuf's limit, and therefore that of one file
MIN_OPSET: Final = 7


def read_foreign(path: Path) -> bytes:
    """Reads a foreign ONNX file and checks everything except its inputs and outputs.

    Weights in other files of its folder, as torch writes them, become part of the graph, local functions
    are replaced by their operators, and nodes are sorted. A file that needs none of it is returned unchanged.

    Raises:
        GraphRefused: it is not a regular file, too large, not ONNX, invalid, uses an operator outside
            DOMAINS, refers to data outside its folder, or holds training information.
    """
    if path.is_symlink():
        raise GraphRefused(
            f"{path.name} is a link, and links are not followed; copy the file, with the files of its "
            "weights: cp -L"
        )
    if not path.is_file():
        raise GraphRefused(f"{path.name}: not a regular file")
    if path.stat().st_size > MAX_GRAPH_BYTES:
        raise GraphRefused(f"{path.name}: larger than 2 GiB")

    other = describe_other_content(path)
    if other is not None:
        raise GraphRefused(f"{path.name} is {other}")
    data = path.read_bytes()
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's DecodeError is private to its backend
        raise GraphRefused(f"{path.name}: not an ONNX file") from error

    changed = _join_data(model, path)
    if model.functions:
        model, changed = _without_functions(model, path.name), True
    if not _is_sorted(model.graph):
        _sort(model.graph, path.name)
        changed = True
    changed = _fill_shapes(model) or changed
    _check_contents(model, path.name)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise GraphRefused(
            f"{path.name}: onnx's checker refuses it: {first_line(error)}"
        ) from error

    if not changed:
        return data
    strip_history(model)
    return bytes(model.SerializeToString(deterministic=True))


def _join_data(model: onnx.ModelProto, path: Path) -> bool:
    """Reads the weights that are in other files; returns whether there are any."""
    tensors = [t for t in _tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    total = path.stat().st_size
    for tensor in tensors:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        size = _checked_data_file(path, facts.get("location", "")).stat().st_size
        length = facts.get("length", "")
        total += min(size, int(length)) if length.isdecimal() else size
    if total > MAX_GRAPH_BYTES:
        raise GraphRefused(f"{path.name}: larger than 2 GiB with its data")

    for tensor in tensors:
        try:
            load_external_data_for_tensor(tensor, str(path.parent))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise GraphRefused(
                f"{path.name}: the data of {tensor.name!r} cannot be read: {first_line(error)}"
            ) from error
    return bool(tensors)


def _checked_data_file(path: Path, location: str) -> Path:
    # A stranger's file must not make us read, and then publish, something else of this machine.
    parts = PurePosixPath(location).parts
    if not parts or ".." in parts or parts[0] == "/" or PureWindowsPath(location).anchor:
        raise GraphRefused(
            f"{path.name}: data outside the folder is refused ({location!r}); save the model as one file"
        )
    found = path.parent / location
    if not found.exists():
        raise GraphRefused(
            f"{path.name}: its weights are in {location}, which is missing; put it into the same folder"
        )
    inside = found.resolve().is_relative_to(path.parent.resolve())
    if found.is_symlink() or not found.is_file() or not inside:
        raise GraphRefused(
            f"{path.name}: {location} is not a regular file of the same folder; if it is a link, copy the file: "
            "cp -L"
        )
    return found


def _without_functions(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    try:
        whole: onnx.ModelProto = inline_local_functions(model)
    except Exception as error:  # onnx's C++ code raises plain exceptions
        raise GraphRefused(f"{name}: its functions cannot be read: {first_line(error)}") from error
    return whole


def _fill_shapes(model: onnx.ModelProto) -> bool:
    """Adds the shapes of outputs that have none, where they follow; returns whether there were any."""
    open_ones = [value for value in model.graph.output if _has_no_shape(value)]
    if not open_ones:
        return False
    try:
        inferred = {
            value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.output
        }
    except Exception:  # noqa: BLE001 - of an invalid graph; the checker says what is wrong
        return False
    for value in open_ones:
        value.type.CopyFrom(inferred[value.name].type)
    return True


def _has_no_shape(value: onnx.ValueInfoProto) -> bool:
    # Some exporters leave it out, and onnx's checker insists on it.
    kind = value.type.WhichOneof("value")
    return kind is None or (kind == "tensor_type" and not value.type.tensor_type.HasField("shape"))


def _is_sorted(graph: onnx.GraphProto) -> bool:
    made = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        if made.intersection(node.input):
            return False
        made.difference_update(node.output)
    return True


def _sort(graph: onnx.GraphProto, name: str) -> None:
    try:
        sort_nodes(graph)
    except CycleError as error:
        raise GraphRefused(f"{name}: its operators depend on each other in a circle") from error


def _check_contents(model: onnx.ModelProto, name: str) -> None:
    # A domain that is declared but not used needs no implementation.
    foreign = sorted({node.domain for node in _nodes(model)} - DOMAINS)
    if foreign:
        advice = ""
        if foreign[0].startswith("com.microsoft"):  # onnxruntime's optimiser and quantizer write it
            advice = (
                "; import the graph that onnxruntime made it from, for int8 with --int8 or as QDQ"
            )
        raise GraphRefused(
            f"{name}: operators of the domain {foreign[0]!r} are not supported{advice}"
        )
    if opset_of(model) < MIN_OPSET:
        raise GraphRefused(f"{name}: opset {opset_of(model)} is below {MIN_OPSET}")
    if model.training_info:
        raise GraphRefused(f"{name}: holds training information; export it for inference")


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
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)

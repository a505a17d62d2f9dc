"""What int8 and float16 graphs are made with: a float graph ready to be changed, and its last step."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import onnx

from training.evaluation.session import quantization
from training.export.export import strip_history

HEAVY: Final = ("Conv", "Gemm", "MatMul")
"""The operators that take the time, and those that a lower precision is for."""


@contextmanager
def quiet_tools() -> Iterator[None]:
    """Silences what onnxruntime 1.32 still calls: onnx helpers that announce their removal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def prepared(graph: bytes) -> onnx.ModelProto:
    """Parses a float graph, its constants and batch normalisation folded, every node with a name.

    Raises:
        Exception: whatever onnxruntime's preparation fails in.
    """
    with tempfile.TemporaryDirectory(prefix="convserve-") as folder:
        source, result = (Path(folder) / f"{i}.onnx" for i in range(2))
        source.write_bytes(graph)
        # A foreign graph may still have constants and batch normalisation to fold.
        quantization().shape_inference.quant_pre_process(source, result, skip_symbolic_shape=True)
        model = onnx.load_model(result)
    _name_nodes(model.graph)
    return model


def finished(model: onnx.ModelProto) -> bytes:
    """Returns the file of a changed graph: checked, self-contained, the same bytes every time.

    Raises:
        Exception: onnx's checker refuses it.
    """
    strip_history(model)
    _drop_unused_domains(model)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def normalisation_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names the nodes between the input and the first convolution.

    They turn pixels into normalised floats exactly; rounding twice there would only lose.
    """
    reached = {graph.input[0].name}
    names = []
    for node in graph.node:
        if node.op_type not in HEAVY and reached.intersection(node.input):
            reached.update(node.output)
            names.append(node.name)
    return names


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Gives a name to nodes without one, by which they can be told from each other."""
    taken = {node.name for node in graph.node}
    for number, node in enumerate(graph.node):
        if not node.name:
            name = f"node_{number}"
            while name in taken:
                name += "_"
            taken.add(name)
            node.name = name


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    """Removes what onnxruntime's preparation declares for operators that do not occur."""
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)

"""The steps that int8 and fp16 share: preparing a float graph, and finishing the changed one."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Final

import onnx

from training.evaluation.session import quantization
from training.export.export import strip_history

HEAVY: Final = (
    "Conv",
    "Gemm",
    "MatMul",
)  # they take most of the time; a lower precision is for them


@contextmanager
def ignore_deprecations() -> Iterator[None]:
    # onnxruntime 1.32 still calls onnx helpers that announce their removal.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def prepare_graph(graph: bytes) -> onnx.ModelProto:
    """Parses a float graph, folds constants and batch norms, and names every node.

    Raises:
        Exception: of any kind, from onnxruntime's preparation.
    """
    with tempfile.TemporaryDirectory(prefix="convserve-") as folder:
        source, result = (Path(folder) / f"{i}.onnx" for i in range(2))
        source.write_bytes(graph)
        # Our own exports are already folded. Foreign graphs are sometimes not.
        quantization().shape_inference.quant_pre_process(source, result, skip_symbolic_shape=True)
        model = onnx.load_model(result)
    _name_nodes(model.graph)
    return model


def finish_graph(model: onnx.ModelProto) -> bytes:
    """Returns the ONNX file of a changed graph: checked, self-contained, the same bytes every time.

    Raises:
        Exception: onnx's checker refuses it.
    """
    strip_history(model)
    _drop_unused_domains(model)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def normalisation_nodes(graph: onnx.GraphProto) -> list[str]:
    """Returns the names of the nodes between the input and the first convolution.

    They turn pixels into normalised floats exactly, so a lower precision would only add errors there.
    """
    reached = {graph.input[0].name}
    names = []
    for node in graph.node:
        if node.op_type not in HEAVY and reached.intersection(node.input):
            reached.update(node.output)
            names.append(node.name)
    return names


def _name_nodes(graph: onnx.GraphProto) -> None:
    # Lists of excluded nodes go by name, and exporters may leave it empty.
    taken = {node.name for node in graph.node}
    for number, node in enumerate(graph.node):
        if not node.name:
            name = f"node_{number}"
            while name in taken:
                name += "_"
            taken.add(name)
            node.name = name


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    # onnxruntime's preparation declares domains for operators that do not occur.
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Puts nodes after those they depend on, as ONNX wants it.

    onnxruntime's converter to float16 appends its casts at the end. Raises CycleError.
    """
    nodes = list(graph.node)
    makers = {name: i for i, node in enumerate(nodes) for name in node.output}
    needs = {i: [makers[n] for n in node.input if n in makers] for i, node in enumerate(nodes)}
    replace_nodes(graph, [nodes[i] for i in TopologicalSorter(needs).static_order()])


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)

"""Runs a graph in steps, and keeps only the tensors that later steps need.

Choosing the weights of a layer needs its inputs, which depend on the weights chosen before. Running
the whole graph again for each layer would take a time that grows with the square of their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from training.evaluation.session import SessionPlan, open_session

_BATCH: Final = 16


class Walk:
    """A graph that has run up to a node, on all rows.

    Dequantized activations are not kept: the step that needs one makes it again from the uint8 tensor,
    which is a quarter of the size. The rows stay in the same batches from step to step, since a tensor
    may have no batch axis, such as a shape that a later step reshapes to.

    Args:
        model: changes of its initializers apply to the steps that are still to come.
        rows: input rows without the batch axis.
    """

    def __init__(self, model: onnx.ModelProto, rows: Sequence[NDArray[Any]]) -> None:
        self._model = model
        self._dequantize = {
            node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"
        }
        self._nodes = [n for n in model.graph.node if n.op_type != "DequantizeLinear"]
        self._next = 0
        # A graph with a fixed batch runs one row at a time.
        batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
        batch = batch or _BATCH
        starts = range(0, len(rows), batch)
        self._tensors: dict[str, list[NDArray[Any]]] = {
            model.graph.input[0].name: [np.stack(rows[i : i + batch]) for i in starts]
        }

    def run_to(self, name: str) -> None:
        """Runs all nodes before the node of this name."""
        end = next(i for i, node in enumerate(self._nodes) if node.name == name)
        if end > self._next:
            self._run(self._nodes[self._next : end], self._nodes[end:])
            self._next = end

    def tensor(self, name: str) -> NDArray[Any]:
        """Returns a tensor that a node to come reads, shape (N, ...); not a dequantized one."""
        return np.concatenate(self._tensors[name])

    def _run(self, nodes: list[onnx.NodeProto], rest: list[onnx.NodeProto]) -> None:
        step = self._with_dequantize(nodes)
        made = {name for node in step for name in node.output}
        read = {name for node in step for name in node.input}
        needed = {name for node in self._with_dequantize(rest) for name in node.input}
        inputs = sorted(read & self._tensors.keys())
        outputs = sorted(made & needed - self._dequantize.keys())

        kept = {name: self._tensors[name] for name in needed & self._tensors.keys()}
        self._tensors = kept | self._outputs(step, read, inputs, outputs)

    def _outputs(
        self, step: list[onnx.NodeProto], read: set[str], inputs: list[str], outputs: list[str]
    ) -> dict[str, list[NDArray[Any]]]:
        graph = helper.make_graph(
            step,
            "step",
            [_described(name, self._tensors[name][0]) for name in inputs],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [one for one in self._model.graph.initializer if one.name in read],
        )
        model = helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version
        )
        # Node by node in float: exact, and the same on every processor.
        session = open_session(model.SerializeToString(), SessionPlan(optimise=False))

        n_batches = len(next(iter(self._tensors.values())))
        parts = [
            session.run(outputs, {name: self._tensors[name][i] for name in inputs})
            for i in range(n_batches)
        ]
        return {name: list(column) for name, *column in zip(outputs, *parts, strict=True)}

    def _with_dequantize(self, nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
        found = []
        added: set[str] = set()
        for node in nodes:
            for name in node.input:
                if name in self._dequantize and name not in added:
                    added.add(name)
                    found.append(self._dequantize[name])
            found.append(node)
        return found


def _described(name: str, values: NDArray[Any]) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    shape = ["N", *values.shape[1:]] if values.ndim else []
    return helper.make_tensor_value_info(name, kind, shape)

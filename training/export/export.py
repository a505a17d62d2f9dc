"""Exports a network to one self-contained ONNX file, from pixels to probabilities.

torch's exporter can freeze the batch axis or shift an answer without a warning. `check_batches` therefore
runs the graph at several batch sizes and compares it with the network before anything else happens.

Shapes: N pictures, S = crop size in pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
import torch
from torch import nn

from training.errors import ExportFailed, first_line
from training.evaluation.session import open_session
from training.networks.architectures import OUTPUTS, PixelsToProbabilities

INPUT: Final = "image"
OPSET: Final = 20

# The largest difference of a probability between graph and network on the same pixels. Both compute in
# float32 and differ only in the order of sums: 2e-6 for EfficientNet-Lite0.
MAX_DIFFERENCE: Final = 1e-4


def export(network: PixelsToProbabilities, size_px: int) -> bytes:
    """Exports a network with a dynamic batch axis.

    Returns:
        The ONNX file: input `image`, uint8, (N, S, S, 3); outputs as `network` returns them, named as in
        `OUTPUTS`; no external data, and no trace of where or when it was made.

    Raises:
        ExportFailed: torch cannot export it, or onnx's checker refuses the result.
    """
    # With an example batch of 1 the exporter would make the batch axis a constant.
    example = torch.zeros((2, size_px, size_px, 3), dtype=torch.uint8)
    try:
        with torch.inference_mode():
            n_outputs = len(network.eval()(example))
        model = _run_exporter(network, example, OUTPUTS[:n_outputs])
        strip_history(model)
        onnx.checker.check_model(model, full_check=True)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ExportFailed(f"the network cannot be exported: {first_line(error)}") from error

    graph: bytes = model.SerializeToString(deterministic=True)
    return graph


def check_batches(
    graph: bytes, network: nn.Module, size_px: int, batch_sizes: Sequence[int]
) -> float:
    """Compares graph and network on the same random pixels, uint8, (N, S, S, 3), at each batch size N.

    The first output of the network is its probabilities. Returns their largest difference.

    Raises:
        ExportFailed: a batch is refused, has other shapes, or differs by more than MAX_DIFFERENCE.
    """
    session = open_session(graph)
    generator = np.random.default_rng(0)
    worst = 0.0
    for n in batch_sizes:
        pixels = generator.integers(0, 256, (n, size_px, size_px, 3), dtype=np.uint8)
        with torch.inference_mode():
            expected = network(torch.from_numpy(pixels))[0].numpy()

        answer = _run(session, pixels)
        if answer.shape != expected.shape:
            raise ExportFailed(f"a batch of {n} gives shape {answer.shape}, not {expected.shape}")

        worst = max(worst, float(np.abs(answer - expected).max()))
        if not worst <= MAX_DIFFERENCE:  # also true for NaN
            raise ExportFailed(
                f"a batch of {n} differs from the network by {worst:.2g}, "
                f"the limit is {MAX_DIFFERENCE:g}"
            )
    return worst


def strip_history(model: onnx.ModelProto) -> None:
    # Exporters leave source files, paths and times there. Computation does not depend on them.
    for name in ("metadata_props", "doc_string"):
        model.ClearField(name)
        model.graph.ClearField(name)
    graph = model.graph
    parts = (graph.node, graph.initializer, graph.value_info, graph.input, graph.output)
    for part in parts:
        for entry in part:
            entry.ClearField("metadata_props")
            entry.ClearField("doc_string")


def _run_exporter(
    network: PixelsToProbabilities, example: torch.Tensor, outputs: Sequence[str]
) -> onnx.ModelProto:
    with warnings.catch_warnings():
        # torch 2.13 copies a deprecated class of its own while exporting.
        warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)
        # onnxscript 0.7 and torch 2.13 announce removals in each other.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        program: Any = torch.onnx.export(
            network,
            (example,),
            input_names=[INPUT],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )

    model: onnx.ModelProto = program.model_proto
    return model


def _run(session: Any, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, Any]:
    try:
        answer: np.ndarray[Any, Any] = session.run([OUTPUTS[0]], {INPUT: pixels})[0]
    except Exception as error:  # onnxruntime raises plain exceptions of its own
        raise ExportFailed(f"a batch of {len(pixels)} fails: {first_line(error)}") from error
    return answer

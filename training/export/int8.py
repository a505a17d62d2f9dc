"""int8: quantizes a float graph and gates the loss.

Weights become int8 per output channel, activations uint8; the normalisation and the softmax stay float.
onnxruntime's static quantizer makes the graph and measures the ranges of the activations.
`training.export.weights` then chooses the weights, so that the answers stay close to the float graph's
and do not depend on the processor (docs/decisions/0042-int8-weights.md).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from contract.manifest import Quantization
from training.errors import QuantizationFailed
from training.evaluation.scorer import Scorer
from training.evaluation.session import quantization
from training.export.draft import Draft
from training.export.edits import (
    finish_graph,
    ignore_deprecations,
    normalisation_nodes,
    prepare_graph,
)
from training.export.gate import LowerPrecision, PrecisionReference, pass_gate
from training.export.weights.choose import choose_weights

log = logging.getLogger(__name__)

METHOD: Final = (
    "static QDQ, MinMax, int8 weights per channel (GPTQ, bounded pairs, corrected biases), "
    "uint8 activations, float logits"
)
QUANTIZED_OPERATORS: Final = ("Conv", "Clip", "Relu", "Add", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class CalibrationRows:
    """Input rows, without the batch axis, that the ranges of the activations are measured on."""

    rows: Sequence[NDArray[Any]]
    source: str  # what the pictures are, for the manifest


def make_int8(
    draft: Draft,
    target: LowerPrecision,
    reference: PrecisionReference,
    calibration: CalibrationRows,
) -> Draft:
    """Returns the draft with an int8 graph and its `quantization`, if it passes the gate.

    Raises:
        QuantizationFailed: it cannot be made, or loses more than the target allows.
    """
    log.info("int8: calibrating on %d pictures", len(calibration.rows))
    draft = draft.with_model(quantize(draft.model, calibration.rows))

    scorer = Scorer(draft.model, draft, prepare=reference.prepare)
    loss = pass_gate(scorer.probabilities(reference.pictures), reference, target)

    cost = Quantization(
        method=METHOD,
        calibration_data=calibration.source,
        n_calibration_images=len(calibration.rows),
        accuracy_drop_percent=loss.drop_percent,
        top1_agreement_percent=loss.agreement_percent,
        against_float=loss.to_manifest(),
    )
    return replace(draft, quantization=cost)


def quantize(graph: bytes, rows: Sequence[NDArray[Any]]) -> bytes:
    """Returns an int8 ONNX file with the same inputs and outputs, self-contained.

    `rows` are calibration pictures, one input row each.

    Raises:
        QuantizationFailed: the quantizer fails, or onnx's checker refuses the result.
    """
    tools = quantization()

    with tempfile.TemporaryDirectory(prefix="convserve-") as folder, ignore_deprecations():
        result = Path(folder) / "int8.onnx"
        try:
            model = prepare_graph(graph)
            exact = onnx.ModelProto.FromString(model.SerializeToString())  # `model` is changed
            tools.quantize_static(
                model,
                result,
                _reader(tools, model.graph.input[0].name, rows),
                quant_format=tools.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED_OPERATORS),
                per_channel=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                calibrate_method=tools.CalibrationMethod.MinMax,
                nodes_to_exclude=normalisation_nodes(model.graph),
                # Logits in 256 steps would make different classes equal.
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            )
            quantized = onnx.load_model(result)
            choose_weights(exact, quantized, rows)
            return finish_graph(quantized)
        except Exception as error:  # the quantizer raises whatever its steps raise
            raise QuantizationFailed(f"the quantizer failed: {error}") from error


def _reader(tools: Any, name: str, rows: Sequence[NDArray[Any]]) -> Any:
    class Reader(tools.CalibrationDataReader):  # type: ignore[misc] # the base is not typed
        def __init__(self) -> None:
            self._feeds: Iterator[dict[str, NDArray[Any]]] = iter(
                [{name: np.expand_dims(row, 0)} for row in rows]
            )

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(self._feeds, None)

    return Reader()

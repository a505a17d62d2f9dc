"""The int8 step: quantize by onnxruntime's static quantizer, and let the gate judge what it cost.

Weights become int8 per output channel, activations uint8; the normalisation in front and the
softmax behind stay in float. Weights use 7 of the 8 bits: on x86 processors without VNNI the int8
kernels add pairs of products in 16 bits, which overflows for full-range weights, so that answers
would depend on the processor (docs/decisions/0013-int8-reduced-range.md).
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
from training.export.edits import finished, normalisation_nodes, prepared, quiet_tools
from training.export.gate import LowerPrecision, PrecisionReference, judge

log = logging.getLogger(__name__)

METHOD: Final = (
    "static QDQ, MinMax, int8 weights per channel in 7 bits, uint8 activations, float logits"
)
QUANTIZED_OPERATORS: Final = ("Conv", "Clip", "Relu", "Add", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class CalibrationRows:
    """What the ranges of an int8 graph's activations are taken from.

    Attributes:
        rows: one input row a picture, of the graph's dtype and shape without the batch axis.
        source: what the pictures are, for the manifest.
    """

    rows: Sequence[NDArray[Any]]
    source: str


def make_int8(
    draft: Draft,
    target: LowerPrecision,
    reference: PrecisionReference,
    calibration: CalibrationRows,
) -> Draft:
    """Quantizes a float graph and lets it pass if it is good enough.

    Returns:
        The draft with the int8 graph and its `quantization`.

    Raises:
        QuantizationFailed: it cannot be made, or loses more than the target allows.
    """
    log.info("int8: calibrating on %d pictures", len(calibration.rows))
    draft = draft.with_model(quantize(draft.model, calibration.rows))
    scorer = Scorer(draft.model, draft, prepare=reference.prepare)
    loss = judge(scorer.probabilities(reference.pictures), reference, target)
    cost = Quantization(
        method=METHOD,
        calibration_data=calibration.source,
        n_calibration_images=len(calibration.rows),
        accuracy_drop_percent=loss.drop_percent,
        top1_agreement_percent=loss.agreement_percent,
    )
    return replace(draft, quantization=cost)


def quantize(graph: bytes, rows: Sequence[NDArray[Any]], *, reduce_range: bool = True) -> bytes:
    """Quantizes a float graph.

    Args:
        graph: ONNX file with one input.
        rows: calibration pictures, each one input row.
        reduce_range: weights in 7 bits. False is for measurements only.

    Returns:
        The int8 ONNX file with the same inputs and outputs, self-contained.

    Raises:
        QuantizationFailed: the quantizer gives up, or onnx's checker refuses its result.
    """
    tools = quantization()
    with tempfile.TemporaryDirectory(prefix="convserve-") as folder, quiet_tools():
        result = Path(folder) / "int8.onnx"
        try:
            model = prepared(graph)
            tools.quantize_static(
                model,
                result,
                _reader(tools, model.graph.input[0].name, rows),
                quant_format=tools.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZED_OPERATORS),
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                calibrate_method=tools.CalibrationMethod.MinMax,
                nodes_to_exclude=normalisation_nodes(model.graph),
                # Logits in 256 steps would tie classes that differ.
                extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            )
            return finished(onnx.load_model(result))
        except Exception as error:  # the quantizer fails in whatever its steps raise
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

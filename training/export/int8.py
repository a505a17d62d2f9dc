"""The int8 step: calibrate, quantize, and let the gate judge what it cost."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from numpy.typing import NDArray

from contract.manifest import Manifest, Quantization
from contract.preprocessing import to_input
from contract.versions import sha256
from training.data.photographs import SOURCE, read_photographs, varied_crops
from training.data.pictures import input_rows, scan_plain
from training.errors import PicturesMissing
from training.evaluation.scorer import Scorer
from training.export.gate import Judgement, judge
from training.export.plan import Int8
from training.export.quantize import METHOD, quantize

log = logging.getLogger(__name__)


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
    graph: bytes,
    draft: Manifest,
    *,
    calibration: CalibrationRows,
    judgement: Judgement,
    plan: Int8,
) -> tuple[bytes, Manifest]:
    """Quantizes a float graph and lets it pass if it is good enough.

    Args:
        graph: the float ONNX file.
        draft: its manifest.
        calibration: pictures to take the ranges from.
        judgement: other pictures, and the float graph's answers to them.
        plan: the limits.

    Returns:
        The int8 ONNX file, and the draft with its digest and `quantization`.

    Raises:
        QuantizationFailed: it loses more than the plan allows.
    """
    log.info("int8: calibrating on %d pictures", len(calibration.rows))
    quantized = quantize(graph, calibration.rows)
    described = draft.graph.model_copy(update={"sha256": sha256(quantized)})
    draft = draft.model_copy(update={"graph": described})
    answers = Scorer(quantized, draft).probabilities(judgement.pictures)
    loss = judge(answers, judgement, plan)
    cost = Quantization(
        method=METHOD,
        calibration_data=calibration.source,
        n_calibration_images=len(calibration.rows),
        accuracy_drop_percent=loss.drop_percent,
        top1_agreement_percent=loss.agreement_percent,
    )
    return quantized, draft.model_copy(update={"quantization": cost})


def calibration_rows(draft: Manifest, plan: Int8) -> CalibrationRows:
    """Returns the plan's pictures as input rows: those of its folder, or else free ones.

    Raises:
        PicturesMissing: the folder holds no readable picture.
    """
    if plan.calibration_dir is None:
        return CalibrationRows(_free_rows(draft, plan), f"{SOURCE}, seed {plan.seed}")
    folder = scan_plain(plan.calibration_dir)
    rows = input_rows(islice(folder, plan.n_calibration), draft)
    if not rows:
        raise PicturesMissing(f"{plan.calibration_dir.name}: no readable pictures")
    return CalibrationRows(rows, f"pictures of the folder {plan.calibration_dir.name}")


def _free_rows(draft: Manifest, plan: Int8) -> list[NDArray[Any]]:
    """Makes input rows of free crops, which have the right size and skip the resize."""
    size_px = draft.preprocessing.crop_size_px
    whole = draft.preprocessing.model_copy(update={"resize_size_px": size_px})
    spec = draft.model_copy(update={"preprocessing": whole})
    crops = varied_crops(read_photographs(), plan.n_calibration, size_px, seed=plan.seed)
    return [to_input(crop, spec) for crop in crops]

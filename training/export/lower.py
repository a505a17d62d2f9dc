"""From a proven float graph to one of lower precision, or back where that loses too much."""

from __future__ import annotations

import logging
from collections.abc import Callable

from contract.manifest import Manifest
from training.errors import PrecisionFailed
from training.export.fp16 import make_fp16
from training.export.gate import Judgement
from training.export.int8 import CalibrationRows, make_int8
from training.export.plan import Int8, LowerPrecision

log = logging.getLogger(__name__)


def lower(
    graph: bytes,
    draft: Manifest,
    *,
    plan: LowerPrecision,
    judgement: Judgement,
    calibration: Callable[[Int8], CalibrationRows],
) -> tuple[bytes, Manifest]:
    """Makes the graph that a plan asks for and lets the gate judge it.

    Args:
        graph: the float ONNX file.
        draft: its manifest.
        plan: which precision, and the limits.
        judgement: pictures, and the float graph's answers to them.
        calibration: makes the pictures that int8 takes its ranges from.

    Returns:
        The graph and its manifest; the float ones where it fails and the plan says so.

    Raises:
        PrecisionFailed: it cannot be made, or loses more than the plan allows.
    """
    try:
        if isinstance(plan, Int8):
            return make_int8(
                graph,
                draft,
                calibration=calibration(plan),
                judgement=judgement,
                plan=plan,
            )
        return make_fp16(graph, draft, judgement=judgement, plan=plan)
    except PrecisionFailed as error:
        if not plan.or_float:
            raise
        log.warning("%s: %s; the float graph is published instead", plan.name, error)
        return graph, draft

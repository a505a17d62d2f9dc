"""From a proven float graph to one of lower precision, or back where that loses too much."""

from __future__ import annotations

import logging
from collections.abc import Callable

from training.errors import PrecisionFailed
from training.export.draft import Draft
from training.export.fp16 import make_fp16
from training.export.gate import LowerPrecision, PrecisionReference
from training.export.int8 import CalibrationRows, make_int8

log = logging.getLogger(__name__)


def lower(
    draft: Draft,
    target: LowerPrecision,
    reference: PrecisionReference,
    calibration: Callable[[Draft], CalibrationRows],
) -> Draft:
    """Makes the graph of a lower precision and lets the gate judge it.

    Args:
        draft: with the float graph.
        target: the precision and the limits.
        reference: pictures, and the float graph's answers to them.
        calibration: makes the rows that int8 takes its ranges from.

    Returns:
        The draft with the graph and what it costs; as it was where that is too much and the
        target allows it.

    Raises:
        PrecisionFailed: it cannot be made, or loses more than the target allows.
    """
    try:
        if target.precision == "int8":
            return make_int8(draft, target, reference, calibration(draft))
        return make_fp16(draft, target, reference)
    except PrecisionFailed as error:
        if not target.or_float:
            raise
        log.warning("%s: %s; the float graph is published instead", target.precision, error)
        return draft

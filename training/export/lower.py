"""Makes the graph of a lower precision from a verified float graph."""

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
    """Returns the draft with a graph of lower precision, and its cost.

    If that fails and the target allows it (`or_float`), the draft comes back as it was.

    Args:
        draft: with the float graph.
        target: the precision and the limits.
        reference: pictures, and the float graph's probabilities for them.
        calibration: makes the rows that int8 measures its ranges on.

    Raises:
        PrecisionFailed: the graph cannot be made, or loses more than the target allows.
    """
    try:
        if target.precision == "int8":
            return make_int8(draft, target, reference, calibration(draft))
        return make_fp16(draft, target, reference)
    except PrecisionFailed as error:
        if not target.or_float:
            raise
        log.warning("%s; the float graph is published instead", error)
        return draft

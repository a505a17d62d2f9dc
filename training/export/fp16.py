"""The float16 step: convert, and let the gate judge what it cost."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from contract.manifest import HalfPrecision, Manifest
from contract.versions import sha256
from training.data.pictures import Picture
from training.errors import GateFailed, HalfPrecisionFailed
from training.evaluation.scorer import Scorer
from training.export.gate import Judgement, judge
from training.export.half import METHOD, rounded, to_half
from training.export.plan import Fp16

log = logging.getLogger(__name__)


def make_fp16(
    graph: bytes, draft: Manifest, *, judgement: Judgement, plan: Fp16
) -> tuple[bytes, Manifest]:
    """Converts a float graph to float16 and lets it pass if it is good enough.

    What is judged rounds and overflows as a processor does that computes in float16.

    Args:
        graph: the float ONNX file.
        draft: its manifest.
        judgement: pictures, and the float graph's answers to them.
        plan: the limits.

    Returns:
        The float16 ONNX file, and the draft with its digest and `half_precision`.

    Raises:
        HalfPrecisionFailed: it loses more than the plan allows, or overflows.
    """
    half = to_half(graph)
    described = draft.graph.model_copy(update={"sha256": sha256(half)})
    draft = draft.model_copy(update={"graph": described})
    loss = judge(_rounded_answers(half, draft, judgement.pictures), judgement, plan)
    log.info("fp16: off by %.1g at most, every result rounded to float16", loss.max_difference)
    cost = HalfPrecision(
        method=METHOD,
        accuracy_drop_percent=loss.drop_percent,
        top1_agreement_percent=loss.agreement_percent,
        max_abs_difference=loss.max_difference,
    )
    return half, draft.model_copy(update={"half_precision": cost})


def _rounded_answers(
    half: bytes, draft: Manifest, pictures: Iterable[Picture]
) -> NDArray[np.float32]:
    """Answers as in float16, float32, shape (N, C)."""
    try:
        return Scorer(rounded(half), draft).probabilities(pictures)
    except GateFailed as error:
        raise HalfPrecisionFailed(
            "in float16, whose largest number is 65504, the graph answers values that are not "
            "finite"
        ) from error

"""Golden examples: pictures with the answers that every loaded copy of a version must give.

A good example is decided: its first class must survive everything that may differ between machines.
The tolerance is measured: each picture is answered alone and in a full batch, by one thread and by
all, with the runtime's kernels and node by node in plain float arithmetic. The last pair bounds
what another processor's kernels can change, since both round at the same places. A float16 graph,
which CPUs compute in float32, is answered with every result rounded to float16 as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.manifest import GoldenExample, GoldenPrediction, Manifest
from contract.predictions import to_predictions
from contract.preprocessing import reference_input
from contract.versions import sha256
from training.data.pictures import Picture
from training.errors import VersionUnproven
from training.evaluation.scorer import Scorer
from training.evaluation.session import SessionPlan
from training.export.half import rounded

FOLDER: Final = "golden"
TOP_K: Final = 5
SAFETY: Final = 3.0
"""Tolerance as a multiple of the largest difference measured on this machine."""

MIN_TOLERANCE: Final = 0.01
"""Also covers GPUs, whose default convolutions keep 10 bits of mantissa."""

MAX_TOLERANCE: Final = 0.2


def make_golden(
    graph: bytes, manifest: Manifest, pictures: Sequence[Picture], max_batch: int
) -> tuple[GoldenExample, ...]:
    """Makes golden examples of the pictures that are decided.

    Args:
        graph: the ONNX file to be published.
        manifest: of the version in the making.
        pictures: candidates.
        max_batch: the largest batch the version is meant for.

    Returns:
        One example a decided picture, in order; files lie in the version's folder `golden/`.

    Raises:
        VersionUnproven: no picture is decided.
    """
    answers = _answers(graph, manifest, pictures, max_batch)  # (variants, N, C)
    examples = []
    for i, picture in enumerate(pictures):
        example = _example(picture, answers[:, i], manifest)
        if example is not None:
            examples.append(example)
    if not examples:
        raise VersionUnproven(
            f"none of {len(pictures)} golden pictures has a first class that is clear enough; "
            "name a folder of clearer ones with --golden"
        )
    return tuple(examples)


def _answers(
    graph: bytes, manifest: Manifest, pictures: Sequence[Picture], max_batch: int
) -> NDArray[np.float32]:
    """Answers every picture under every condition; the first is the one of record."""
    n = len(pictures)
    full = [pictures[i % n] for i in range(max(max_batch, n))]
    exact = Scorer(graph, manifest, SessionPlan(optimise=False), reference_input)
    single = Scorer(graph, manifest, SessionPlan(threads=1), reference_input)
    usual = Scorer(graph, manifest, prepare=reference_input)
    variants = [
        usual.probabilities(pictures, 1),
        usual.probabilities(full, max_batch)[:n],
        single.probabilities(pictures, 1),
        exact.probabilities(pictures, 1),
    ]
    if manifest.half_precision is not None:
        as_in_float16 = Scorer(rounded(graph), manifest, prepare=reference_input)
        variants.append(as_in_float16.probabilities(pictures, 1))
    return np.stack(variants)


def _example(
    picture: Picture, answers: NDArray[np.float32], manifest: Manifest
) -> GoldenExample | None:
    """Makes one example, or None where the first class is not safe within the tolerance."""
    top5 = to_predictions(answers[0], manifest, TOP_K)
    indexes = [prediction.index for prediction in top5]
    spread = float(np.ptp(answers[:, indexes], axis=0).max())
    tolerance = max(MIN_TOLERANCE, round(SAFETY * spread, 3))
    lead = top5[0].probability - (top5[1].probability if len(top5) > 1 else 0.0)
    if tolerance > MAX_TOLERANCE or lead <= 2 * tolerance:
        return None
    return GoldenExample(
        file=f"{FOLDER}/{picture.name}",
        sha256=sha256(picture.data),
        top5=tuple(
            GoldenPrediction(index=p.index, label=p.label, probability=round(p.probability, 6))
            for p in top5
        ),
        tolerance=tolerance,
    )

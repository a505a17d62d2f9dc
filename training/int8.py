"""The int8 step of an import: calibrate, quantize, and judge what it cost.

Where labelled pictures are given the judge is the drop of top-1. Otherwise it is how often int8 and
float agree on the first class, over free pictures that calibration has not seen and on which the
float graph is decided. Crops of a dozen photographs show few of the classes, so this judge is harder
than photographs: the committed model agrees on 86 % of such crops and on 97 % of 300 photographs.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.manifest import Manifest, Quantization
from contract.preprocessing import to_input
from contract.versions import sha256
from training.errors import PicturesMissing, QuantizationFailed
from training.evaluate import Scorer, accuracy, agreement_percent
from training.free_pictures import SOURCE, picture_files, read_photographs, varied_crops
from training.pictures import Picture, input_rows, scan_plain
from training.plan import Int8, Report
from training.quantize import METHOD, quantize

_N_HELD_OUT: Final = 400
_DECIDED_LEAD: Final = 0.2
"""By how much the first class must be ahead of the second for a picture to judge without a label."""

_HELD_OUT_SEED: Final = 1_000_003  # far from any calibration seed


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the float graph answers to the pictures that judge the int8 one.

    Attributes:
        pictures: N files, the same on every pass.
        answers: float32, shape (N, C): the float graph's probabilities.
        indexes: int64, shape (N,): the class each picture shows; None where that is unknown.
    """

    pictures: Iterable[Picture]
    answers: NDArray[np.float32]
    indexes: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class CalibrationRows:
    """What the ranges of an int8 graph's activations are taken from.

    Attributes:
        rows: one input row a picture, of the graph's dtype and shape without the batch axis.
        source: what the pictures are, for the manifest.
    """

    rows: Sequence[NDArray[Any]]
    source: str


def held_out_pictures() -> list[Picture]:
    """Returns free pictures that no calibration has seen, though of the same photographs."""
    return list(picture_files(read_photographs(), _N_HELD_OUT, seed=_HELD_OUT_SEED))


def make_int8(
    graph: bytes,
    draft: Manifest,
    *,
    calibration: CalibrationRows,
    judgement: Judgement,
    plan: Int8,
    report: Report,
) -> tuple[bytes, Manifest]:
    """Quantizes a float graph and lets it pass if it is good enough.

    Args:
        graph: the float ONNX file.
        draft: its manifest.
        calibration: pictures to take the ranges from.
        judgement: other pictures, and the float graph's answers to them.
        plan: the limits.
        report: takes progress lines.

    Returns:
        The int8 ONNX file, and the draft with its digest and `quantization`.

    Raises:
        QuantizationFailed: it loses more than the plan allows.
    """
    report(f"int8: calibrating on {len(calibration.rows)} pictures")
    quantized = quantize(graph, calibration.rows)
    described = draft.graph.model_copy(update={"sha256": sha256(quantized)})
    draft = draft.model_copy(update={"graph": described})
    answers = Scorer(quantized, draft).probabilities(judgement.pictures)
    judges = _judges(judgement)
    agreement = agreement_percent(answers[judges], judgement.answers[judges])
    drop = _drop(answers, judgement)
    report(
        f"int8: same first class as float in {agreement:.2f} % of {int(judges.sum())} pictures"
        + (f", {drop:.2f} points of top-1 lost" if drop is not None else "")
    )
    _check(agreement, drop, plan)
    cost = Quantization(
        method=METHOD,
        calibration_data=calibration.source,
        n_calibration_images=len(calibration.rows),
        accuracy_drop_percent=drop,
        top1_agreement_percent=agreement,
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


def _judges(judgement: Judgement) -> NDArray[np.bool_]:
    """Tells which pictures count, bool, shape (N,): all with a class, else the decided ones."""
    if judgement.indexes is not None:
        return np.ones(len(judgement.answers), dtype=np.bool_)
    second, first = np.sort(judgement.answers, axis=1)[:, -2:].T
    decided: NDArray[np.bool_] = first - second >= _DECIDED_LEAD
    if not decided.any():
        raise QuantizationFailed(
            "the float graph is undecided on every free picture; judge it on pictures of its own "
            "classes with --evaluate"
        )
    return decided


def _check(agreement: float, drop: float | None, plan: Int8) -> None:
    if drop is not None and drop > plan.max_drop:
        raise QuantizationFailed(
            f"int8 costs {drop:.2f} points of top-1, the limit is {plan.max_drop:g}"
        )
    if drop is None and agreement < plan.min_agreement_percent:
        raise QuantizationFailed(
            f"int8 and float agree in {agreement:.2f} % of first classes, "
            f"the limit is {plan.min_agreement_percent:g} %"
        )


def _drop(answers: NDArray[np.float32], judgement: Judgement) -> float | None:
    if judgement.indexes is None:
        return None
    before = accuracy(judgement.answers, judgement.indexes, "float").top1_percent
    after = accuracy(answers, judgement.indexes, "int8").top1_percent
    return round(before - after, 3)


def _free_rows(draft: Manifest, plan: Int8) -> list[NDArray[Any]]:
    """Makes input rows of free crops, which have the right size and skip the resize."""
    size_px = draft.preprocessing.crop_size_px
    whole = draft.preprocessing.model_copy(update={"resize_size_px": size_px})
    spec = draft.model_copy(update={"preprocessing": whole})
    crops = varied_crops(read_photographs(), plan.n_calibration, size_px, seed=plan.seed)
    return [to_input(crop, spec) for crop in crops]

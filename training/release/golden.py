"""Golden examples: pictures with the predictions that every loaded copy of a version must give.

A good example has a clear first class: numeric differences between machines cannot change it. Pictures
that need not show the network's classes may all lack one. Then they are examples without a clear first
class, whose tolerance shrinks with the probabilities (docs/decisions/0050).

The tolerance comes from measurements on this machine: alone and in a full batch, with one thread and
with all, with and without graph optimisation. The unoptimised run bounds the effect of another CPU's
kernels, because both round at the same places. A float16 graph also runs with each result rounded to
float16, since CPUs compute it in float32.

The published probabilities belong to the reference pixels. A good example gets nearly the same answer
when it is sent in a request, whose pixels differ a little (docs/decisions/0040).

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.images import sniff
from contract.manifest import GoldenExample, GoldenPrediction, Label
from contract.predictions import to_predictions
from contract.preprocessing import Tensor, golden_inputs
from contract.versions import sha256
from training.data.pictures import Picture
from training.data.samples import Sample
from training.errors import VersionUnproven
from training.evaluation.scorer import Scorer
from training.evaluation.session import SessionPlan
from training.export.draft import Draft
from training.export.fp16 import emulate_fp16

FOLDER: Final = "golden"
TOP_K: Final = 5
SAFETY: Final = 3.0  # tolerance / largest difference measured on this machine
MIN_TOLERANCE: Final = 0.01  # covers GPUs: their default convolutions keep 10 bits of mantissa
MAX_TOLERANCE: Final = 0.2  # a picture that needs more is skipped
_ROUNDING: Final = 6  # decimals of the published probabilities
# Largest change of a probability by the pixels of a request; a picture that changes more is skipped.
# Of 300 photographs, all change less in float, and six in seven in int8, which rounds activations.
SERVED_MARGIN: Final = {"fp32": 0.01, "fp16": 0.01, "int8": 0.02}


def make_golden(
    draft: Draft, pictures: Sequence[Picture], max_batch: int, *, known: bool = True
) -> tuple[GoldenExample, ...]:
    """Makes a golden example of each picture that has a clear first class and is served alike.

    If no picture has one and they are not known, each that is served alike becomes an undecided example.

    Args:
        draft: with the final graph.
        pictures: the candidates.
        max_batch: the largest batch size to check.
        known: the pictures are of the network's classes, so one at least must be clear.

    Returns:
        The examples in the order of the pictures; their files belong in `golden/`.

    Raises:
        VersionUnproven: there is no good example among the pictures.
    """
    if not pictures:  # `choose_surest` found none that the graph gets right
        raise VersionUnproven("the final graph gets no test picture right, so none can be golden")

    inputs = [golden_inputs(picture.data, draft) for picture in pictures]
    reference_rows, served_rows = map(list, zip(*inputs, strict=True))
    answers = _answers(draft, reference_rows, max_batch)  # (variants, N, C)
    served = Scorer(draft.model, draft).probabilities_of_rows(served_rows, 1)  # (N, C)

    def examples(*, undecided: bool) -> tuple[GoldenExample, ...]:
        made = (
            _example(picture, answers[:, i], served[i], draft, undecided=undecided)
            for i, picture in enumerate(pictures)
        )
        return tuple(example for example in made if example is not None)

    found = examples(undecided=False) or (() if known else examples(undecided=True))
    if not found:
        raise VersionUnproven(
            f"none of {len(pictures)} golden pictures has a clear first class that is also served "
            f"within {SERVED_MARGIN[draft.precision]:g}; `import` takes clearer pictures from --golden, `fit` from the test pictures"
        )
    return found


def _answers(draft: Draft, rows: Sequence[Tensor], max_batch: int) -> NDArray[np.float32]:
    # The first variant gives the published probabilities; the others give the spread.
    n = len(rows)
    full = [rows[i % n] for i in range(max(max_batch, n))]
    exact = Scorer(draft.model, draft, SessionPlan(optimise=False))
    single = Scorer(draft.model, draft, SessionPlan(threads=1))
    usual = Scorer(draft.model, draft)
    variants = [
        usual.probabilities_of_rows(rows, 1),
        usual.probabilities_of_rows(full, max_batch)[:n],
        single.probabilities_of_rows(rows, 1),
        exact.probabilities_of_rows(rows, 1),
    ]
    if draft.half_precision is not None:
        as_in_float16 = Scorer(emulate_fp16(draft.model), draft)
        variants.append(as_in_float16.probabilities_of_rows(rows, 1))
    return np.stack(variants)


def _example(
    picture: Picture,
    answers: NDArray[np.float32],
    served: NDArray[np.float32],
    draft: Draft,
    *,
    undecided: bool = False,
) -> GoldenExample | None:
    top5 = to_predictions(answers[0], draft, TOP_K)
    indexes = [prediction.index for prediction in top5]
    spread = float(np.ptp(answers[:, indexes], axis=0).max())

    # The same error of a logit moves a small probability less, in proportion. MIN_TOLERANCE is for 0.5.
    scale = min(1.0, 2 * top5[0].probability) if undecided else 1.0
    digits = _ROUNDING if undecided else 3
    least = max(round(MIN_TOLERANCE * scale, digits), 10**-_ROUNDING)
    tolerance = max(least, round(SAFETY * spread, digits))

    margin = SERVED_MARGIN[draft.precision] * scale
    if float(np.abs(served[indexes] - answers[0, indexes]).max()) > margin:
        return None

    # Two answers may each move by the tolerance, so the lead must be more than twice that.
    served_tolerance = round(tolerance + margin, digits)
    # With sigmoid, several labels may be right, so the first need not lead the second.
    has_rival = len(top5) > 1 and draft.activation == "softmax"
    lead = top5[0].probability - (top5[1].probability if has_rival else 0.0)
    if tolerance > MAX_TOLERANCE or (lead <= 2 * served_tolerance and not undecided):
        return None

    return GoldenExample(
        file=f"{FOLDER}/{picture.name}",
        sha256=sha256(picture.data),
        top5=tuple(
            GoldenPrediction(
                index=p.index, label=p.label, probability=round(p.probability, _ROUNDING)
            )
            for p in top5
        ),
        tolerance=tolerance,
        served_tolerance=served_tolerance,
        undecided=undecided or None,
    )


def choose_surest(
    samples: Sequence[Sample], labels: Sequence[Label], probabilities: NDArray[np.float32], n: int
) -> list[Picture]:
    """Chooses pictures that the graph knows well, of as many classes as possible.

    The surest pictures of each class come first, one class after the other, so that a swapped label
    or a channel mix-up anywhere shows. They are published with the version.

    Args:
        samples: N labelled pictures.
        labels: of the C classes.
        probabilities: float32, shape (N, C): the graph's answers to them.
        n: how many at most.
    """
    ranked: dict[int, list[Sample]] = {}
    indexes = np.array([sample.index for sample in samples], dtype=np.int64)
    sure = probabilities[np.arange(len(indexes)), indexes]  # (N,)
    for row in np.argsort(-sure, kind="stable"):
        if probabilities[row].argmax() == indexes[row]:
            ranked.setdefault(int(indexes[row]), []).append(samples[int(row)])

    # One picture of each class in turn, until n are taken.
    rounds = max((len(known) for known in ranked.values()), default=0)
    in_turn = (
        ranked[index][turn]
        for turn in range(rounds)
        for index in sorted(ranked)
        if turn < len(ranked[index])
    )

    pictures = []
    for number, sample in enumerate(islice(in_turn, n)):
        content, label = sample.read(), labels[sample.index].name
        pictures.append(Picture(_file_name(number, label, content), content, sample.index))
    return pictures


def _file_name(number: int, label: str, content: bytes) -> str:
    # Labels and file names may hold characters that another file system refuses.
    plain = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40]
    return f"{number:02d}-{plain or 'class'}.{sniff(content).name}"

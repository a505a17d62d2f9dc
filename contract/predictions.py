"""From a graph's outputs to labelled predictions, and the comparison with golden examples.

Answers, evaluations and golden examples all end here, so a prediction means the same in each.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import GoldenMismatch
from contract.manifest import GoldenExample, Interface, Manifest

DEFAULT_TOP_K: Final = 5

UNSTATED_SERVED_TOLERANCE: Final = 0.1
"""Least `served_tolerance` of a golden example that states none, because it was published before.

Graphs of that time answer with a difference of up to 0.08 if one pixel value in 300 differs by 1.
"""

Ranking = list[tuple[int, float]]  # (class index, probability), most probable first


@dataclass(frozen=True, slots=True)
class TopK:
    """Which classes of an answer are wanted: the arguments of `top_k`."""

    k: int = DEFAULT_TOP_K
    min_probability: float = 0.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class that a picture may show.

    Attributes:
        label: the name of the class.
        index: its position in the output vector.
        synset: its WordNet id, None if the model's labels have none.
        probability: 0..1.
    """

    label: str
    index: int
    synset: str | None
    probability: float


def to_probabilities(scores: NDArray[np.float32], manifest: Interface) -> NDArray[np.float32]:
    """Turns the graph's score output into probabilities.

    Args:
        scores: float32, shape (..., C), from the output `manifest.graph.scores`.
        manifest: says whether the scores are probabilities or logits. Logits are divided by the
            calibration's temperature and get the manifest's activation.

    Returns:
        float32, shape (..., C); with softmax each row sums to 1, or nearly so if the graph rounds its
        probabilities. With sigmoid each class has a probability of its own.
    """
    if manifest.graph.scores.kind == "probabilities":
        return scores
    activation = sigmoid if manifest.activation == "sigmoid" else softmax
    return activation(scores, manifest.calibration.temperature)


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float32]:
    """Returns f_j(z) = exp(z_j / T) / sum_k exp(z_k / T) over the last axis.

    Finite logits never overflow.

    Args:
        logits: float, shape (..., C), any finite values.
        temperature: > 0. Above 1 flattens, below 1 sharpens (Guo et al. 2017, arXiv:1706.04599).

    Returns:
        float32, shape (..., C), each in [0, 1]; each row sums to 1.
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))  # exponents are 0 at most
    probabilities: NDArray[np.float64] = scaled / scaled.sum(axis=-1, keepdims=True)
    return probabilities.astype(np.float32)


def sigmoid(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float32]:
    """Returns f(z) = 1 / (1 + exp(-z / T)) of each value, for classes that do not exclude each other.

    Finite logits never overflow.

    Args:
        logits: float, shape (..., C), any finite values.
        temperature: > 0, as for `softmax`.

    Returns:
        float32, shape (..., C), each in [0, 1].
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    raised = np.exp(-np.abs(scaled))  # exponents are 0 at most
    probabilities: NDArray[np.float64] = np.where(scaled >= 0, 1, raised) / (1 + raised)
    return probabilities.astype(np.float32)


def to_predictions(
    probabilities: NDArray[np.float32], manifest: Interface, k: int, min_probability: float = 0.0
) -> list[Prediction]:
    """Returns the classes that `top_k` selects, with the names from the manifest.

    Args:
        probabilities: float32, shape (C,).
        manifest: its labels name the classes.
        k: the largest number of predictions.
        min_probability: classes below it are left out.
    """
    return [
        Prediction(manifest.labels[index].name, index, manifest.labels[index].synset, probability)
        for index, probability in top_k(probabilities, k, min_probability)
    ]


def default_top_k(manifest: Manifest) -> int:
    """Returns how many classes an answer holds if nobody says: `DEFAULT_TOP_K`.

    With sigmoid all of them, since any number of labels may be right; `min_probability` is the
    threshold then.
    """
    return manifest.n_classes if manifest.activation == "sigmoid" else DEFAULT_TOP_K


def top_k(probabilities: NDArray[np.float32], k: int, min_probability: float = 0.0) -> Ranking:
    """Returns the k most probable classes of one picture, most probable first.

    Args:
        probabilities: float32, shape (C,), finite.
        k: the largest number of classes; values above C mean C.
        min_probability: classes below it are left out, so the list can be shorter or empty.

    Returns:
        Equal probabilities are ordered by class index.
    """
    k = max(k, 0)

    # Most callers want 5 of 1,000 classes. Sorting all of them would cost more than the rest.
    if k < len(probabilities) / 8:
        least = np.partition(probabilities, len(probabilities) - max(k, 1))[-max(k, 1)]
        candidates = np.flatnonzero(probabilities >= least)  # more than k if some are equal
    else:
        candidates = np.arange(len(probabilities))

    # A stable sort keeps equal probabilities in the order of their indices.
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")][:k]  # (k,)
    pairs = ((int(index), float(probabilities[index])) for index in order)
    return [(index, value) for index, value in pairs if value >= min_probability]


def check_golden(
    example: GoldenExample, answer: Sequence[float] | NDArray[np.float32], *, served: bool = False
) -> float:
    """Compares an answer with a golden example.

    Args:
        example: the expected predictions and the tolerances.
        answer: float32, shape (C,): the probabilities for the example's picture.
        served: the pixels are those of a request, not the reference, so `served_tolerance` holds.

    Returns:
        The largest difference in an expected probability.

    Raises:
        GoldenMismatch: the answer has too few classes or a value that is not finite, a probability
            differs by more than the tolerance, or another class leads the expected first one by
            more than the tolerance.
    """
    values = np.asarray(answer)
    if not np.isfinite(values).all():
        raise GoldenMismatch(f"{example.file}: the answer has a value that is not finite")
    if max(p.index for p in example.top5) >= len(values):
        raise GoldenMismatch(f"{example.file}: the answer has only {len(values)} classes")

    differences = {p.index: abs(float(values[p.index]) - p.probability) for p in example.top5}
    worst = max(differences.values())
    tolerance = served_tolerance(example) if served else example.tolerance
    if worst > tolerance:
        way = "as a request" if served else "with the reference pixels"
        raise GoldenMismatch(
            f"{example.file}: a probability differs by {worst:.4f} {way}, "
            f"the tolerance is {tolerance:g}"
        )

    # Two classes that are nearly equal may change places on another processor.
    first = example.top5[0]
    best = int(values.argmax())
    if best != first.index and float(values[best]) - first.probability > tolerance:
        raise GoldenMismatch(f"{example.file}: class {best} is first, expected {first.label!r}")

    return worst


def served_tolerance(example: GoldenExample) -> float:
    """Returns the allowed difference in a probability for the pixels that requests get.

    This is the example's `served_tolerance`. If it states none, it is `UNSTATED_SERVED_TOLERANCE`
    or its `tolerance`, the larger of the two.
    """
    if example.served_tolerance is None:
        return max(example.tolerance, UNSTATED_SERVED_TOLERANCE)
    return example.served_tolerance

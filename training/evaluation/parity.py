"""Parity of graph and network: both answer the same image bytes, each through its own code.

The reference is the network in torch behind Pillow and timm's own evaluation transform. The other side
is the ONNX file behind `contract`. They share nothing but the bytes, so a wrong mean, a swapped channel,
a shifted crop or a frozen batch axis shows up here.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import nn

from contract.manifest import Parity
from training.data.pictures import Picture
from training.errors import ParityFailed
from training.evaluation.scorer import Scorer, agreement_percent
from training.networks.architectures import evaluation_transform

REFERENCE: Final = "torch and timm's evaluation transform"

# The largest difference of a probability that a float graph may show. The pixels are equal by
# construction. Float32 sums in another order differ by about 1e-6, a mistake in preprocessing by 1e-2
# or more, and the limit lies between.
MAX_DIFFERENCE: Final = 1e-3

N_EVERY_BATCH: Final = 64  # pictures at each batch size; the largest size gets all of them
_BATCH: Final = 8


def reference_probabilities(
    network: nn.Module, pictures: Sequence[Picture], temperature: float = 1.0
) -> NDArray[np.float32]:
    """Returns the probabilities of torch behind timm's transform, float32, shape (N, C).

    Args:
        network: in evaluation mode, normalised pixels to logits.
        pictures: files without transparency.
        temperature: T; the logits are divided by it.
    """
    transform = evaluation_transform(network)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(pictures), _BATCH):
            chunk = pictures[start : start + _BATCH]
            images = torch.stack([transform(_open(picture)) for picture in chunk])
            rows.append(torch.softmax(network(images) / temperature, dim=-1).numpy())
    return np.concatenate(rows)  # (N, C)


def measure_parity(
    scorer: Scorer,
    expected: NDArray[np.float32],
    rows: Sequence[NDArray[Any]],
    batch_sizes: Sequence[int],
) -> tuple[Parity, NDArray[np.float32]]:
    """Compares a graph with the reference at several batch sizes.

    Args:
        scorer: the graph.
        expected: the reference's probabilities, float32, shape (N, C).
        rows: the N pictures by `reference_input`. All of them run at the largest batch size, the first
            N_EVERY_BATCH at the others.
        batch_sizes: the sizes to try.

    Returns:
        The comparison over all sizes, and the graph's probabilities at the largest one.
    """
    worst = 0.0
    answers = np.empty_like(expected)
    for size in sorted(batch_sizes):
        n = len(rows) if size == max(batch_sizes) else N_EVERY_BATCH
        answers = scorer.probabilities_of_rows(rows[:n], size)
        worst = max(worst, float(np.abs(answers - expected[:n]).max()))

    parity = Parity(
        reference=REFERENCE,
        max_abs_difference=float(f"{worst:.3g}"),
        top1_agreement_percent=agreement_percent(answers, expected),
        n_images=len(rows),
        batch_sizes=tuple(sorted(batch_sizes)),
    )
    return parity, answers


def check_parity(
    parity: Parity,
    answers: NDArray[np.float32],
    expected: NDArray[np.float32],
    max_difference: float = MAX_DIFFERENCE,
) -> None:
    """Checks that a float graph gives the network's answers.

    Args:
        parity: from `measure_parity`.
        answers: the graph's probabilities, float32, shape (N, C).
        expected: likewise, the reference's.
        max_difference: of a probability.

    Raises:
        ParityFailed: a probability differs by more than `max_difference`, or a picture has another first
            class although the reference is clear about it.
    """
    if not parity.max_abs_difference <= max_difference:
        raise ParityFailed(
            f"a probability differs by {parity.max_abs_difference:.2g} over "
            f"{parity.n_images} pictures, the limit is {max_difference:g}"
        )

    # Another first class is accepted only if the reference itself is undecided: each probability may be
    # off by the limit, so two of them less than twice the limit apart cannot be told apart.
    rows = np.arange(len(expected))
    lead = expected.max(axis=1) - expected[rows, answers.argmax(axis=1)]  # (N,)
    changed = int((lead > 2 * max_difference).sum())
    if changed:
        raise ParityFailed(f"{changed} of {parity.n_images} pictures have another first class")


def without_transparency(pictures: Sequence[Picture]) -> list[Picture]:
    """Returns the opaque pictures: the contract blends transparency with a background, timm does not."""
    opaque = []
    for picture in pictures:
        with Image.open(io.BytesIO(picture.data)) as image:
            if not image.has_transparency_data and image.mode in ("RGB", "L"):
                opaque.append(picture)
    return opaque


def _open(picture: Picture) -> Any:
    with Image.open(io.BytesIO(picture.data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")

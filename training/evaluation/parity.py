"""Whether graph and network agree, each on its own way from the same image bytes.

One way is the network in torch behind Pillow and timm's own evaluation transform; the other is the
ONNX file behind `contract`. Nothing is shared but the bytes, so a wrong mean, a swapped channel, a
shifted crop or a frozen batch axis shows up here.

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
MAX_DIFFERENCE: Final = 1e-3
"""Largest accepted difference of a probability for a float graph.

The pixels are equal by construction and float32 sums in another order differ by some 1e-6 in a
probability; a mistake in preprocessing shows as 1e-2 or more. The limit lies between.
"""

N_EVERY_BATCH: Final = 64
_BATCH: Final = 8


def reference_probabilities(
    network: nn.Module, pictures: Sequence[Picture], temperature: float = 1.0
) -> NDArray[np.float32]:
    """Answers pictures with torch and timm's transform.

    Args:
        network: in evaluation mode, normalised pixels to logits.
        pictures: files without transparency.
        temperature: logits are divided by it.

    Returns:
        float32, shape (N, C).
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
        expected: float32, shape (N, C): the reference's answers.
        rows: the N pictures by `reference_input`; all of them are answered in the largest batches
            and the first N_EVERY_BATCH in each of the other sizes too.
        batch_sizes: to answer them in.

    Returns:
        The comparison over all of them, and the answers of the largest batch size.
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
    """Accepts a float graph whose answers are the network's.

    Another first class is accepted only where the reference itself was undecided: its two
    candidates lie closer together than two probabilities, each off by the limit, can be told apart.

    Args:
        parity: from `measure_parity`.
        answers: float32, shape (N, C): the graph's answers.
        expected: likewise, the reference's.
        max_difference: of a probability.

    Raises:
        ParityFailed: a probability differs by more than `max_difference`, or a decided picture has
            another first class.
    """
    if not parity.max_abs_difference <= max_difference:
        raise ParityFailed(
            f"a probability differs by {parity.max_abs_difference:.2g} over "
            f"{parity.n_images} pictures, the limit is {max_difference:g}"
        )
    rows = np.arange(len(expected))
    lead = expected.max(axis=1) - expected[rows, answers.argmax(axis=1)]  # (N,)
    changed = int((lead > 2 * max_difference).sum())
    if changed:
        raise ParityFailed(f"{changed} of {parity.n_images} pictures have another first class")


def without_transparency(pictures: Sequence[Picture]) -> list[Picture]:
    """Returns the pictures both ways treat alike: the contract has a background, timm has none."""
    opaque = []
    for picture in pictures:
        with Image.open(io.BytesIO(picture.data)) as image:
            if not image.has_transparency_data and image.mode in ("RGB", "L"):
                opaque.append(picture)
    return opaque


def _open(picture: Picture) -> Any:
    with Image.open(io.BytesIO(picture.data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")

"""Which test pictures become candidates for golden examples.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from contract.images.decoding import sniff
from contract.manifest import Label
from training.data.pictures import Picture
from training.data.samples import Sample


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
    """Makes a file name that every system can hold, whatever the label and the file are called."""
    plain = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40]
    return f"{number:02d}-{plain or 'class'}.{sniff(content).name}"

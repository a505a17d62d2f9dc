"""Simulates how often the gate of int8 refuses a good graph and accepts a bad one.

    python benchmarks/training/gate_errors.py models/float/1 good.onnx bad.onnx PHOTOS

GOOD and BAD are int8 graphs of the float version's network, and PHOTOS is a folder of labelled
pictures. All three graphs answer PHOTOS and the bundled crops once. Then sets of 10, 50, 225 and 1,000
of these answers are drawn, 1,000 times each with replacement, and pass through the gate itself. Prints
a table in percent: photographs with labels, photographs without, and bundled crops.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.comparison import compare
from contract.versions import read_version
from training.data.pictures import scan_labelled
from training.errors import QuantizationFailed
from training.evaluation.scorer import Scorer, answer_labelled
from training.export.gate import (
    LowerPrecision,
    PrecisionReference,
    decided,
    held_out_pictures,
    pass_gate,
)

SIZES: Final = (10, 50, 225, 1000)
DRAWS: Final = 1000


def refused(
    answers: NDArray[np.float32], whole: PrecisionReference, size: int, draws: int
) -> float:
    """Returns the percentage of drawn sets on which the gate refuses the graph."""
    generator = np.random.default_rng(size)
    n_refused = 0
    for _ in range(draws):
        rows = generator.integers(len(answers), size=size)
        drawn = replace(
            whole,
            answers=whole.answers[rows],
            indexes=None if whole.indexes is None else whole.indexes[rows],
        )
        try:
            pass_gate(answers[rows], drawn, LowerPrecision("int8"))
        except QuantizationFailed:
            n_refused += 1
    return 100 * n_refused / draws


def references(scorer: Scorer, folder: Path) -> Iterator[tuple[str, PrecisionReference]]:
    pictures = list(scan_labelled(folder, scorer.manifest.labels))
    answers, indexes = answer_labelled(scorer, pictures)
    yield "photographs with labels", PrecisionReference(pictures, answers, indexes)
    yield "photographs", PrecisionReference(pictures, answers)
    crops = held_out_pictures()
    yield "bundled crops", PrecisionReference(crops, scorer.probabilities(crops), bundled=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version", type=Path, help="<models>/<name>/<number>, a float graph")
    parser.add_argument("good", type=Path, help="an int8 graph of it, .onnx")
    parser.add_argument("bad", type=Path, help="another one")
    parser.add_argument("folder", type=Path, help="of labelled pictures")
    parser.add_argument("--draws", type=int, default=DRAWS)
    args = parser.parse_args()
    logging.disable(logging.INFO)

    models_dir, name, number = args.version.parts[:-2], *args.version.parts[-2:]
    version = read_version(Path(*models_dir), name, int(number))
    scorers = [Scorer(path.read_bytes(), version.manifest) for path in (args.good, args.bad)]

    print("| pictures | n | good graph refused | bad graph accepted |\n|---|---|---|---|")
    for kind, whole in references(Scorer(version.graph, version.manifest), args.folder):
        answers = [scorer.probabilities(whole.pictures) for scorer in scorers]
        for size in SIZES:
            good, bad = (refused(rows, whole, size, args.draws) for rows in answers)
            print(f"| {kind} | {size:,} | {good:.1f}% | {100 - bad:.1f}% |", flush=True)

        counted = decided(whole)
        for graph, rows in zip(("good", "bad"), answers, strict=True):
            agreement = compare(whole.answers[counted], rows[counted]).agreement.value
            kl = compare(whole.answers, rows).kl.value
            print(f"{graph} on all {len(rows)}: agreement {agreement:.2f}%, mean KL {kl:.4f}")


if __name__ == "__main__":
    main()

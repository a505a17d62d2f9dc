"""The way of every version, however its graph was made: through the gates to a manifest.

Parity with the network, a lower precision, accuracy of the very graph that is published, golden
examples. Each gate raises before anything is written to the model repository.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from contract.manifest import Manifest, Preprocessing
from contract.preprocessing import reference_input
from training.data.pictures import Picture, input_rows
from training.evaluation.parity import check_parity, measure_parity
from training.evaluation.scorer import Scorer
from training.export import describe as graphs
from training.export.draft import Draft
from training.export.export import check_batches, export
from training.export.gate import LowerPrecision, PrecisionReference
from training.export.int8 import CalibrationRows
from training.export.lower import lower
from training.networks.architectures import PixelsToProbabilities
from training.release.golden import FOLDER as GOLDEN
from training.release.golden import make_golden
from training.release.model_card import FILE as MODEL_CARD
from training.release.model_card import model_card

log = logging.getLogger(__name__)

Files = dict[str, bytes]
"""The content of every file of a version but its manifest, by its path in the version's folder."""


@dataclass(frozen=True, slots=True)
class NetworkReference:
    """What the network itself answers, to compare a graph with.

    Attributes:
        pictures: N files without transparency.
        expected: float32, shape (N, C): the network's probabilities, on torch's own way from the
            bytes.
    """

    pictures: Sequence[Picture]
    expected: NDArray[np.float32]


class Evidence(Protocol):
    """The pictures that prove a version: folders for an import, splits for a trained network."""

    @property
    def max_batch(self) -> int:
        """The largest batch the version is tried with."""

    def precision_reference(self, draft: Draft) -> PrecisionReference:
        """Lets the float graph answer the pictures that judge a lower precision."""

    def calibration(self, draft: Draft) -> CalibrationRows:
        """Prepares the pictures that int8 takes its ranges from."""

    def measured(self, draft: Draft) -> Draft:
        """Adds what the graph that is published achieves.

        Raises:
            AccuracyTooLow: less than was asked for.
        """

    def golden(self) -> Sequence[Picture]:
        """Returns candidates for golden examples; asked for after `measured`."""


def prove(
    draft: Draft,
    reference: NetworkReference | None,
    evidence: Evidence,
    target: LowerPrecision | None,
) -> tuple[Manifest, Files]:
    """Takes a float graph through the gates.

    Args:
        draft: with the float graph.
        reference: what its network answers; None for a foreign graph.
        evidence: pictures.
        target: the precision to make of it; None publishes it as it is.

    Returns:
        The manifest of the version, and its other files.

    Raises:
        GateFailed: which gate, and by how much.
    """
    rows: list[NDArray[Any]] = []
    if reference is not None:
        rows = input_rows(reference.pictures, draft, reference_input)
        draft = _compared(draft, reference.expected, rows, evidence.max_batch)

    if target is not None:
        draft = lower(draft, target, evidence.precision_reference(draft), evidence.calibration)
    if reference is not None and draft.precision != "fp32":
        draft = _compared(draft, reference.expected, rows, evidence.max_batch)

    draft = evidence.measured(draft)
    return _assembled(draft, evidence.golden(), evidence.max_batch)


def export_checked(
    network: nn.Module, spec: Preprocessing, *, max_batch: int, temperature: float = 1.0
) -> bytes:
    """Exports a network and compares the graph with it at every batch size.

    Args:
        network: normalised pixels to logits.
        spec: its preprocessing, which becomes part of the graph.
        max_batch: the largest batch to try.
        temperature: becomes part of the graph.

    Raises:
        ExportFailed: the graph is invalid or answers differently.
    """
    wrapped = PixelsToProbabilities(network, spec.mean, spec.std, temperature).eval()
    graph = export(wrapped, spec.crop_size_px)
    worst = check_batches(graph, wrapped, spec.crop_size_px, batch_sizes(max_batch))
    log.info("export: %.1f MB, off by %.1g at most on random pixels", len(graph) / 1e6, worst)
    return graph


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Returns the batch sizes every dynamic graph is tried with: 1, 2, 7 and the largest."""
    return tuple(sorted({1, 2, min(7, max_batch), max_batch}))


def _compared(
    draft: Draft, expected: NDArray[np.float32], rows: Sequence[NDArray[Any]], max_batch: int
) -> Draft:
    """Compares the graph with its network, which a float graph must agree with."""
    scorer = Scorer(draft.model, draft)
    parity, answers = measure_parity(scorer, expected, rows, batch_sizes(max_batch))
    if draft.precision == "fp32":
        log.info(
            "parity: same first class in %g %% of %d pictures, off by %.1g at most",
            parity.top1_agreement_percent,
            parity.n_images,
            parity.max_abs_difference,
        )
        check_parity(parity, answers, expected)
    return replace(draft, parity=parity)


def _assembled(
    draft: Draft, candidates: Sequence[Picture], max_batch: int
) -> tuple[Manifest, Files]:
    """Adds golden examples, of the candidates that are decided, and the model card."""
    golden = make_golden(draft, candidates, max_batch)
    tolerances = [example.tolerance for example in golden]
    log.info(
        "golden: %d of %d pictures are decided, tolerance %g to %g",
        len(golden),
        len(candidates),
        min(tolerances),
        max(tolerances),
    )

    by_file = {f"{GOLDEN}/{picture.name}": picture.data for picture in candidates}
    files = {graphs.GRAPH_FILE: draft.model, MODEL_CARD: model_card(draft).encode()}
    files.update({example.file: by_file[example.file] for example in golden})
    return draft.to_manifest(golden, files), files

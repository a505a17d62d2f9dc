"""The gates that every version passes, trained or imported.

In order: parity with the network, lower precision, accuracy of the final graph, comparison with the
version that it replaces, golden examples. A gate that fails raises before anything is written to the
model repository.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from contract.manifest import Classifier, GoldenExample, Graph, Manifest, Preprocessing
from contract.preprocessing import reference_input
from training.data.pictures import Picture, input_rows
from training.evaluation.parity import check_parity, measure_parity
from training.evaluation.scorer import Scorer
from training.export import describe as graphs
from training.export.classifier import linear_classifier
from training.export.draft import Draft
from training.export.export import check_batches, export
from training.export.gate import LowerPrecision, PrecisionReference
from training.export.int8 import CalibrationRows
from training.export.lower import lower
from training.networks.architectures import PixelsToProbabilities, feature_layout
from training.release.golden import FOLDER as GOLDEN
from training.release.golden import make_golden
from training.release.model_card import FILE as MODEL_CARD
from training.release.model_card import model_card
from training.release.publish import Destination
from training.release.replacement import AnsweredPictures, compare_with_replaced

log = logging.getLogger(__name__)

CLASSIFIER: Final = "classifier.npz"

Files = dict[str, bytes]
"""Path in the version's folder -> content, for every file except the manifest."""


@dataclass(frozen=True, slots=True)
class ExportedNetwork:
    """A float graph, and what else a draft takes from the network; the names are those of `Draft`."""

    model: bytes
    graph: Graph
    classifier: Classifier | None
    files: Files


@dataclass(frozen=True, slots=True)
class NetworkReference:
    """The network's own predictions, to compare its graph with.

    Attributes:
        pictures: N files without transparency.
        expected: float32, shape (N, C): the network's probabilities, with torch's own decoding and
            preprocessing.
    """

    pictures: Sequence[Picture]
    expected: NDArray[np.float32]


class Evidence(Protocol):
    """The pictures used by the gates: folders for an import, splits for a trained network."""

    @property
    def max_batch(self) -> int:
        """The largest batch size to check."""
        ...

    def precision_reference(self, draft: Draft) -> PrecisionReference:
        """Returns the float graph's answers, which the lower precision is measured against."""
        ...

    def calibration(self, draft: Draft) -> CalibrationRows:
        """Returns preprocessed pictures for int8 calibration.

        Raises:
            PicturesMissing: there is no readable picture.
        """
        ...

    def measured(self, draft: Draft) -> tuple[Draft, AnsweredPictures | None]:
        """Returns the draft with the accuracy of its final graph, and the test pictures if any.

        Raises:
            AccuracyTooLow: the accuracy is below the required minimum.
        """
        ...

    def golden(self) -> Sequence[Picture]:
        """Returns candidates for golden examples. Call after `measured`."""
        ...

    @property
    def golden_known(self) -> bool:
        """The candidates are pictures of the network's classes, so it must be sure about one."""
        ...


def run_gates(
    draft: Draft,
    reference: NetworkReference | None,
    evidence: Evidence,
    target: LowerPrecision | None,
    to: Destination,
) -> tuple[Manifest, Files]:
    """Runs a draft with a float graph through all gates.

    Args:
        draft: with the float graph.
        reference: the network's predictions; None for an imported ONNX file, which has no network.
        evidence: the pictures.
        target: the precision to convert to; None keeps float32.
        to: where it is published, and what the user allows there.

    Returns:
        The manifest of the version, and its other files.

    Raises:
        GateFailed: names the gate and by how much the model misses it.
    """
    rows: list[NDArray[Any]] = []
    if reference is not None:
        rows = input_rows(reference.pictures, draft, reference_input)
        draft = _with_parity(draft, reference.expected, rows, evidence.max_batch)

    if target is not None:
        draft = lower(draft, target, evidence.precision_reference(draft), evidence.calibration)
    # Recorded in the manifest. Only the float graph must agree with the network.
    if reference is not None and draft.precision != "fp32":
        draft = _with_parity(draft, reference.expected, rows, evidence.max_batch)

    draft, tested = evidence.measured(draft)
    draft = compare_with_replaced(draft, to, tested)
    return _assemble(draft, evidence)


def export_checked(
    network: nn.Module, spec: Preprocessing, *, max_batch: int, temperature: float = 1.0
) -> ExportedNetwork:
    """Exports a network to ONNX and compares the two at every batch size.

    Args:
        network: normalised pixels to logits.
        spec: its preprocessing; the graph includes the normalisation.
        max_batch: the largest batch size to check.
        temperature: the graph divides its logits by this.

    Raises:
        ExportFailed: the graph is invalid or gives other results than the network.
    """
    wrapped = PixelsToProbabilities(network, spec.mean, spec.std, temperature).eval()
    graph = export(wrapped, spec.crop_size_px)
    worst = check_batches(graph, wrapped, spec.crop_size_px, batch_sizes(max_batch))
    log.info("export: %.1f MB, largest difference %.1g on random pixels", len(graph) / 1e6, worst)

    described = graphs.describe_export(graph, feature_layout(network))
    weights = linear_classifier(network, spec.crop_size_px)
    if weights is None:
        return ExportedNetwork(graph, described, None, {})
    classifier = Classifier(file=CLASSIFIER, n_features=weights.weight.shape[1])
    return ExportedNetwork(graph, described, classifier, {CLASSIFIER: weights.to_file()})


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    # One, two, an odd number and the largest.
    return tuple(sorted({1, 2, min(7, max_batch), max_batch}))


def _with_parity(
    draft: Draft, expected: NDArray[np.float32], rows: Sequence[NDArray[Any]], max_batch: int
) -> Draft:
    scorer = Scorer(draft.model, draft)
    parity, answers = measure_parity(scorer, expected, rows, batch_sizes(max_batch))
    if draft.precision == "fp32":
        log.info(
            "parity: same first class in %g%% of %d pictures, largest difference %.1g",
            parity.top1_agreement_percent,
            parity.n_images,
            parity.max_abs_difference,
        )
        check_parity(parity, answers, expected)
    return replace(draft, parity=parity)


def _assemble(draft: Draft, evidence: Evidence) -> tuple[Manifest, Files]:
    candidates = evidence.golden()
    golden = make_golden(draft, candidates, evidence.max_batch, known=evidence.golden_known)
    tolerances = [example.tolerance for example in golden]
    if golden[0].undecided:
        note = _undecided_note(golden, len(candidates))
        log.warning("%s", note)
        draft = replace(draft, notes=(*draft.notes, note))
    log.info(
        "golden: %d of %d pictures%s, tolerance %g to %g",
        len(golden),
        len(candidates),
        "" if golden[0].undecided else " have a clear first class",
        min(tolerances),
        max(tolerances),
    )

    by_file = {f"{GOLDEN}/{picture.name}": picture.data for picture in candidates}
    files = {graphs.GRAPH_FILE: draft.model, MODEL_CARD: model_card(draft).encode(), **draft.files}
    files.update({example.file: by_file[example.file] for example in golden})
    return draft.to_manifest(golden, files), files


def _undecided_note(golden: Sequence[GoldenExample], n_candidates: int) -> str:
    surest = max(example.top5[0].probability for example in golden)
    return (
        f"The network is unsure about all {n_candidates} example pictures (its largest probability is "
        f"{surest:.2g}), so the golden examples compare its probabilities only. Is it trained, and are "
        "the weights and the preprocessing right? Pass pictures of its classes with --golden."
    )

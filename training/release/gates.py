"""The gates that every version passes on its way out, however its network was made.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from contract.manifest import Manifest, Preprocessing
from contract.preprocessing import reference_input
from training.data.pictures import Picture
from training.evaluation.parity import check_parity, measure_parity
from training.evaluation.scorer import Scorer
from training.export import describe as graphs
from training.export.export import check_batches, export
from training.networks.architectures import PixelsToProbabilities
from training.release.golden import FOLDER as GOLDEN
from training.release.golden import make_golden
from training.release.model_card import FILE as MODEL_CARD
from training.release.model_card import model_card
from training.release.publish import complete_manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reference:
    """What the network itself answers, to compare a graph with.

    Attributes:
        pictures: N files without transparency.
        expected: float32, shape (N, C): the network's probabilities, on torch's own way from the
            bytes.
        max_batch: the largest batch the graph is tried with.
    """

    pictures: Sequence[Picture]
    expected: NDArray[np.float32]
    max_batch: int


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Returns the batch sizes every dynamic graph is tried with: 1, 2, 7 and the largest."""
    return tuple(sorted({1, 2, min(7, max_batch), max_batch}))


def export_checked(
    network: nn.Module,
    spec: Preprocessing,
    *,
    max_batch: int,
    temperature: float = 1.0,
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


def prove_parity(
    graph: bytes,
    draft: Manifest,
    reference: Reference,
) -> Manifest:
    """Compares a float graph with its network from image bytes.

    Returns:
        The draft with the comparison.

    Raises:
        ParityFailed: they disagree.
    """
    parity, answers = measure_parity(
        Scorer(graph, draft, prepare=reference_input),
        reference.expected,
        reference.pictures,
        batch_sizes(reference.max_batch),
    )
    log.info(
        "parity: same first class in %g %% of %d pictures, off by %.1g at most",
        parity.top1_agreement_percent,
        parity.n_images,
        parity.max_abs_difference,
    )
    check_parity(parity, answers, reference.expected)
    return draft.model_copy(update={"parity": parity})


def note_parity(scorer: Scorer, reference: Reference) -> Manifest:
    """Returns a scorer's draft with how its graph of lower precision compares with the network."""
    parity, _ = measure_parity(
        scorer, reference.expected, reference.pictures, batch_sizes(reference.max_batch)
    )
    return scorer.manifest.model_copy(update={"parity": parity})


def assemble(
    graph: bytes,
    draft: Manifest,
    golden_pictures: Sequence[Picture],
    *,
    max_batch: int,
    notes: tuple[str, ...] = (),
) -> tuple[Manifest, dict[str, bytes]]:
    """Adds golden examples and the model card.

    Args:
        graph: the ONNX file to be published.
        draft: its manifest, complete but for the golden examples and the files.
        golden_pictures: candidates; undecided ones are left out.
        max_batch: the largest batch the version is meant for.
        notes: sentences for the model card.

    Returns:
        The manifest, and the content of every other file by its path.

    Raises:
        VersionUnproven: no picture is decided, or the manifest contradicts itself.
    """
    golden = make_golden(graph, draft, golden_pictures, max_batch)
    tolerances = [example.tolerance for example in golden]
    log.info(
        "golden: %d of %d pictures are decided, tolerance %g to %g",
        len(golden),
        len(golden_pictures),
        min(tolerances),
        max(tolerances),
    )
    by_file = {f"{GOLDEN}/{picture.name}": picture.data for picture in golden_pictures}
    files = {graphs.GRAPH_FILE: graph}
    files.update({example.file: by_file[example.file] for example in golden})
    card = model_card(complete_manifest(draft, files, golden=golden), notes)
    files[MODEL_CARD] = card.encode()
    return complete_manifest(draft, files, golden=golden), files

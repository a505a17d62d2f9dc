"""`convserve-train import` of a timm network, and what every import ends with.

A network becomes a `Candidate`: a float graph that has proven itself. `finish` quantizes it if asked
and if it stays good enough, measures it and publishes it. Each gate raises before anything is
written to the repository.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from contract.manifest import Label, Manifest, Provenance
from training import architectures, graphs, pretrained
from training.environment import installed_versions
from training.errors import InputRefused, PicturesMissing, QuantizationFailed
from training.evaluate import Scorer, accuracy, answer_labelled
from training.export import check_batches, export
from training.free_pictures import picture_files, read_photographs
from training.golden import FOLDER as GOLDEN
from training.golden import make_golden
from training.int8 import Judgement, held_out_pictures, make_int8
from training.labels import imagenet_labels, read_labels
from training.model_card import FILE as MODEL_CARD
from training.model_card import model_card
from training.parity import (
    check_parity,
    measure_parity,
    reference_probabilities,
    without_transparency,
)
from training.pictures import Picture, scan_labelled, scan_plain
from training.plan import Destination, Evidence, Int8, Report
from training.publish import complete_manifest, draft_manifest, publish

_N_PARITY: Final = 64
_N_PARITY_LABELLED: Final = 300
_PARITY_SEED: Final = 2_000_003
_PUBLISHED: Final = {
    # timm's results table, ImageNet-1k validation pictures.
    "tf_efficientnet_lite0": (
        "timm publishes a top-1 of 74.846 % for the float network on the 50,000 ImageNet-1k "
        "validation pictures; expect that on new pictures rather than a higher figure above."
    ),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A float graph that has proven itself and waits to be published.

    Attributes:
        graph: the ONNX file.
        draft: its manifest so far.
        weights_source: for the manifest.
        license: SPDX identifier.
        pictures: those the network it was made from has answered; none for a foreign graph.
        expected: the network's answers to them, float32, shape (N, C).
        notes: sentences for the model card.
    """

    graph: bytes
    draft: Manifest
    weights_source: str
    license: str
    pictures: tuple[Picture, ...] = ()
    expected: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()


def batch_sizes(max_batch: int) -> tuple[int, ...]:
    """Returns the batch sizes every dynamic graph is tried with: 1, 2, 7 and the largest."""
    return tuple(sorted({1, 2, min(7, max_batch), max_batch}))


def import_timm(
    architecture: str,
    weights_source: str,
    *,
    labels_file: Path | None,
    to: Destination,
    evidence: Evidence,
    report: Report,
) -> Candidate:
    """Makes and proves the float graph of a timm network.

    Args:
        architecture: timm's name.
        weights_source: "package:<distribution>", "hub" or a path.
        labels_file: names of the classes; ImageNet's where there are 1,000, if None.
        to: where it goes, with a version number.
        evidence: what proves it.
        report: takes progress lines.

    Raises:
        InputRefused: the architecture, the weights, the labels or the licence cannot be used.
        GateFailed: the export, or the parity with torch.
    """
    labels = read_labels(labels_file) if labels_file else imagenet_labels()
    network, weights = _load(architecture, weights_source, len(labels))
    license_id = known_license(to.license, weights.license)
    report(f"weights: {len(network.state_dict())} tensors from {weights.source}")
    graph = _export(network, evidence, report)
    draft = draft_manifest(
        to,
        architecture,
        graph=graphs.describe_export(graph),
        preprocessing=architectures.preprocessing_of(network),
        labels=labels,
    )
    candidate = Candidate(
        graph,
        draft,
        weights.source,
        license_id,
        pictures=_parity_pictures(evidence, labels),
        notes=(_PUBLISHED[architecture],) if architecture in _PUBLISHED else (),
    )
    return _check_parity(candidate, network, evidence, report)


def finish(
    candidate: Candidate, int8: Int8 | None, to: Destination, evidence: Evidence, report: Report
) -> Path:
    """Quantizes, measures and publishes a candidate.

    Args:
        candidate: a proven float graph.
        int8: how to quantize it, or None to publish it as it is.
        to: where it goes.
        evidence: labelled pictures and golden candidates.
        report: takes progress lines.

    Returns:
        The published version's folder.

    Raises:
        GateFailed: quantization, golden examples or the last proof.
    """
    judgement = _judge(candidate, int8, evidence)
    graph, draft = candidate.graph, candidate.draft
    if int8 is not None and judgement is not None:
        try:
            graph, draft = make_int8(graph, draft, int8, judgement, report)
        except QuantizationFailed as error:
            if not int8.or_float:
                raise
            report(f"int8: {error}; the float graph is published instead")
    draft = _measure(graph, draft, candidate, judgement, evidence, report)
    draft = draft.model_copy(update={"provenance": _provenance(candidate, draft, int8, to)})
    manifest, files = _assemble(graph, draft, candidate.notes, evidence, report)
    folder = publish(to.models_dir, manifest, files, replace=to.replace)
    report(f"published {manifest.name}/{manifest.version} ({len(graph) / 1e6:.1f} MB)")
    return folder


def known_license(given: str | None, found: str | None) -> str:
    """Returns the licence the user gives, or else the one the source is known for.

    Raises:
        InputRefused: neither; a version without a licence cannot be passed on.
    """
    license_id = given or found
    if license_id is None:
        raise InputRefused("the licence of these weights is unknown; give it with --license")
    return license_id


def _load(architecture: str, source: str, n_classes: int) -> tuple[nn.Module, pretrained.Weights]:
    if source == pretrained.HUB:
        network = architectures.create(architecture, n_classes, weights_from_hub=True)
        config = getattr(network, "pretrained_cfg", {})
        hub_id = config.get("hf_hub_id") or architecture
        return network, pretrained.Weights({}, f"hub {hub_id}", config.get("license"))
    network = architectures.create(architecture, n_classes)
    weights = pretrained.read_weights(source)
    pretrained.load_into(network, weights)
    return network, weights


def _export(network: nn.Module, evidence: Evidence, report: Report) -> bytes:
    spec = architectures.preprocessing_of(network)
    wrapped = architectures.PixelsToProbabilities(network, spec.mean, spec.std).eval()
    graph = export(wrapped, spec.crop_size_px)
    worst = check_batches(graph, wrapped, spec.crop_size_px, batch_sizes(evidence.max_batch))
    report(f"export: {len(graph) / 1e6:.1f} MB, off by {worst:.1g} at most on random pixels")
    return graph


def _parity_pictures(evidence: Evidence, labels: tuple[Label, ...]) -> tuple[Picture, ...]:
    """Takes labelled pictures where there are any, and free ones otherwise."""
    if evidence.evaluate_dir is None:
        return tuple(picture_files(read_photographs(), _N_PARITY, seed=_PARITY_SEED))
    folder = scan_labelled(evidence.evaluate_dir, labels)
    pictures = tuple(without_transparency(list(islice(folder, _N_PARITY_LABELLED))))
    if not pictures:
        raise PicturesMissing(f"{evidence.evaluate_dir.name}: no readable opaque pictures")
    return pictures


def _check_parity(
    candidate: Candidate, network: nn.Module, evidence: Evidence, report: Report
) -> Candidate:
    expected = reference_probabilities(network, candidate.pictures)
    scorer = Scorer(candidate.graph, candidate.draft)
    sizes = batch_sizes(evidence.max_batch)
    parity, answers = measure_parity(scorer, expected, candidate.pictures, sizes)
    report(
        f"parity: same first class in {parity.top1_agreement_percent:g} % of {parity.n_images} "
        f"pictures, off by {parity.max_abs_difference:.1g} at most"
    )
    check_parity(parity, answers, expected, evidence.max_difference)
    draft = candidate.draft.model_copy(update={"parity": parity})
    return replace(candidate, draft=draft, expected=expected)


def _judge(candidate: Candidate, int8: Int8 | None, evidence: Evidence) -> Judgement | None:
    """Lets the float graph answer the pictures that accuracy and int8 are judged by."""
    scorer = Scorer(candidate.graph, candidate.draft)
    if evidence.evaluate_dir is not None:
        folder = scan_labelled(evidence.evaluate_dir, candidate.draft.labels)
        return Judgement(folder, *answer_labelled(scorer, folder))
    if int8 is not None:
        pictures = held_out_pictures()
        return Judgement(pictures, scorer.probabilities(pictures))
    return None


def _measure(
    graph: bytes,
    draft: Manifest,
    candidate: Candidate,
    judgement: Judgement | None,
    evidence: Evidence,
    report: Report,
) -> Manifest:
    """Adds the accuracy and the parity of the graph that is published."""
    scorer = Scorer(graph, draft)
    changes: dict[str, object] = {}
    if candidate.expected is not None and draft.quantization is not None:
        sizes = batch_sizes(evidence.max_batch)
        parity, _ = measure_parity(scorer, candidate.expected, candidate.pictures, sizes)
        changes["parity"] = parity
    if judgement is not None and judgement.indexes is not None and evidence.evaluate_dir:
        dataset = evidence.dataset or f"the folder {evidence.evaluate_dir.name}"
        answers = scorer.probabilities(judgement.pictures)
        metrics = accuracy(answers, judgement.indexes, dataset)
        report(
            f"accuracy: top-1 {metrics.top1_percent:.2f} %, top-5 {metrics.top5_percent:.2f} %, "
            f"{judgement.pictures}"
        )
        changes["metrics"] = metrics
    return draft.model_copy(update=changes)


def _provenance(
    candidate: Candidate, draft: Manifest, int8: Int8 | None, to: Destination
) -> Provenance:
    return Provenance(
        license=candidate.license,
        weights_source=candidate.weights_source,
        command=to.command,
        seed=int8.seed if int8 is not None and draft.quantization is not None else None,
        versions=installed_versions(),
    )


def _assemble(
    graph: bytes,
    draft: Manifest,
    notes: tuple[str, ...],
    evidence: Evidence,
    report: Report,
) -> tuple[Manifest, dict[str, bytes]]:
    """Adds golden examples and the model card; returns the manifest and every other file."""
    pictures = list(scan_plain(evidence.golden_dir))
    golden = make_golden(graph, draft, pictures, evidence.max_batch)
    tolerances = [example.tolerance for example in golden]
    report(
        f"golden: {len(golden)} of {len(pictures)} pictures are decided, tolerance "
        f"{min(tolerances):g} to {max(tolerances):g}"
    )
    by_file = {f"{GOLDEN}/{picture.name}": picture.data for picture in pictures}
    files = {graphs.GRAPH_FILE: graph}
    files.update({example.file: by_file[example.file] for example in golden})
    card = model_card(complete_manifest(draft, files, golden=golden), notes)
    files[MODEL_CARD] = card.encode()
    return complete_manifest(draft, files, golden=golden), files

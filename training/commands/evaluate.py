"""`convserve-train evaluate`: measures a published version on labelled pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from contract.versions import find_versions, is_version_number, read_version
from training.data.pictures import PictureFolder, scan_labelled
from training.errors import InputRefused
from training.evaluation.calibrate import is_out_of_distribution
from training.evaluation.measures import Evaluation, evaluate
from training.evaluation.scorer import Scorer, accuracy, answer_labelled

_MAX_CLASSES: Final = 20  # rows of the table


def run_evaluate(model: str, folder: Path, models_dir: Path, json_file: Path | None) -> str:
    name, number = _locate(models_dir, model)
    model = f"{name}/{number}"
    version = read_version(models_dir, name, number)
    labels = [label.name for label in version.manifest.labels]

    pictures = scan_labelled(folder, version.manifest.labels)
    scorer = Scorer(version.graph, version.manifest)
    answers, indexes = answer_labelled(scorer, pictures)
    metrics = accuracy(answers, indexes, folder.name)
    measured = evaluate(answers, indexes, folder.name)

    if json_file is not None:
        values = {"model": model, "labels": labels, **measured.to_json()}
        text = json.dumps(values, indent=1, ensure_ascii=False)
        json_file.write_text(text, encoding="utf-8")

    lines = [
        f"{model}: top-1 {metrics.top1_percent:.2f}% (standard error "
        f"{metrics.standard_error:.2f}), top-5 {metrics.top5_percent:.2f}%, {pictures}",
        f"classification error {measured.classification_error:.4f}, mean squared error "
        f"{measured.mean_squared_error:.4f}, cross-entropy {measured.cross_entropy:.4f}, "
        f"expected calibration error {measured.reliability.ece_percent:.2f}%",
    ]
    return "\n".join([*lines, *_unlike_lines(scorer, pictures), *_class_lines(measured, labels)])


def _locate(models_dir: Path, model: str) -> tuple[str, int]:
    name, slash, text = model.partition("/")
    if slash and not is_version_number(text):
        raise InputRefused(f"the model must be <name> or <name>/<version>, got {model!r}")

    found = find_versions(models_dir) if models_dir.is_dir() else {}
    if name not in found:
        models = ", ".join(sorted(found)) or "none"
        raise InputRefused(f"no model {name!r} in {models_dir}; there are: {models}")
    if slash and int(text) not in found[name]:
        versions = ", ".join(map(str, sorted(found[name])))
        raise InputRefused(f"no version {text} of {name} in {models_dir}; there are: {versions}")
    return name, int(text) if slash else max(found[name])


def _unlike_lines(scorer: Scorer, pictures: PictureFolder) -> list[str]:
    calibration = scorer.manifest.calibration
    if calibration.unlike is None:
        return []
    if calibration.unlike.kind != "energy":
        return [
            f"unlike the training data: rules of kind {calibration.unlike.kind} are not measured"
        ]
    _, logits = scorer.probabilities_and_logits(pictures)
    flagged = is_out_of_distribution(logits, calibration.unlike, calibration.temperature)
    return [f"unlike the training data: {100 * float(flagged.mean()):.1f}% of the pictures"]


def _class_lines(measured: Evaluation, labels: Sequence[str]) -> list[str]:
    # Classes without pictures have no F1.
    rows = [pair for pair in zip(labels, measured.classes, strict=True) if pair[1].support]
    rows.sort(key=lambda pair: pair[1].f1)
    width = max(5, *(len(label) for label, _ in rows[:_MAX_CLASSES]))
    lines = [f"{'label':<{width}}  precision  recall      F1  pictures"]
    lines += [
        f"{label:<{width}}  {100 * one.precision:8.1f}%  {100 * one.recall:5.1f}%  "
        f"{100 * one.f1:5.1f}%  {one.support:8}"
        for label, one in rows[:_MAX_CLASSES]
    ]
    if len(rows) > _MAX_CLASSES:
        lines.append(f"... and {len(rows) - _MAX_CLASSES} classes with a higher F1")
    return lines

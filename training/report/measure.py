"""Measures a version after `fit` and writes its report."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from contract.predictions import softmax
from training.data.samples import SPLITS, DataSet, SamplePictures
from training.evaluation.measures import Evaluation, at_thresholds, evaluate, reliability
from training.evaluation.robustness import measure_robustness, stratified
from training.evaluation.scorer import Scorer
from training.evaluation.speed import N_PICTURES as N_TIMED
from training.evaluation.speed import describe_machine, measure_speed
from training.release.trained import CandidateVersion, SplitPredictions
from training.report.data import ReportData, ReportSubject
from training.report.guesses import pick_drawn, pick_mistakes, pick_unsure, show_guess
from training.report.page import write_report
from training.report.plots import HeadScore, HistoryRow

log = logging.getLogger(__name__)

_GRAPHS: Final = {"int8": "int8", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True, slots=True, eq=False)
class RunHistory:
    """The facts about a run that its report shows."""

    findings: str
    config: str
    history: tuple[HistoryRow, ...] = ()  # empty if only the head was trained
    kept_epoch: int | None = None
    head: HeadScore | None = None
    durations_s: Mapping[str, float] = field(default_factory=dict)


def write_fit_report(folder: Path, candidate: CandidateVersion, run: RunHistory) -> dict[str, Any]:
    """Measures robustness and speed, then writes the report and `predictions.csv`.

    Returns:
        The measurements, as plain values for JSON.
    """
    manifest, data, test = candidate.manifest, candidate.data, candidate.test
    scorer = Scorer(candidate.graph, manifest)
    log.info("report: measuring robustness and speed")

    timed = list(SamplePictures(data.test[:N_TIMED]))

    drawn = pick_drawn(len(data.test))
    unsure = pick_unsure(test.probabilities, without=drawn)
    mistakes = pick_mistakes(test.probabilities, test.indexes)
    shown = {
        row: show_guess(data.test[row], test.probabilities[row])
        for row in {*drawn, *unsure, *mistakes}
    }

    measured = ReportData(
        subject=_subject(candidate),
        labels=tuple(label.name for label in data.labels),
        counts={split: _counts(data, split) for split in SPLITS},
        findings=run.findings,
        config=run.config,
        history=run.history,
        kept_epoch=run.kept_epoch,
        head=run.head,
        validation=_evaluate(candidate.validation, "validation"),
        test=_evaluate(test, "test"),
        uncalibrated=reliability(softmax(test.logits), test.indexes),
        calibration=manifest.calibration,
        thresholds=at_thresholds(test.probabilities, test.indexes),
        robustness=measure_robustness(scorer, stratified(data.test)),
        speed=measure_speed(candidate.graph, manifest, timed),
        drawn=tuple(shown[row] for row in drawn),
        unsure=tuple(shown[row] for row in unsure),
        mistakes=tuple(shown[row] for row in mistakes),
        durations_s=run.durations_s,
    )

    page = write_report(folder, measured)
    answers = {"validation": candidate.validation, "test": test}
    write_predictions(folder / "predictions.csv", data, answers)
    log.info("report: %s", page)
    return _plain(measured)


def write_predictions(path: Path, data: DataSet, answers: Mapping[str, SplitPredictions]) -> None:
    """Writes a CSV with one line per picture.

    Args:
        path: the file.
        data: the pictures.
        answers: split name -> predictions for all of its pictures, in order.
    """
    names = [label.name for label in data.labels]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(
            ("split", "picture", "label", "prediction", "probability", "label_probability")
        )
        for split, answered in answers.items():
            for sample, row in zip(data.split(split), answered.probabilities, strict=True):
                first, label = int(row.argmax()), sample.index
                numbers = (f"{row[first]:.6f}", f"{row[label]:.6f}")
                table.writerow((split, sample.name, names[label], names[first], *numbers))


def _plain(measured: ReportData) -> dict[str, Any]:
    return {
        "labels": list(measured.labels),
        "validation": measured.validation.to_json(),
        "test": measured.test.to_json(),
        "calibration": measured.calibration.model_dump(mode="json"),
        "robustness": {row.name: row.top1_percent for row in measured.robustness},
        "speed_ms": {step.step: step.median_ms for step in measured.speed},
        "durations_s": {name: round(value, 1) for name, value in measured.durations_s.items()},
    }


def _subject(candidate: CandidateVersion) -> ReportSubject:
    manifest = candidate.manifest
    return ReportSubject(
        model=manifest.name,
        version=manifest.version,
        architecture=manifest.architecture,
        graph=_GRAPHS[manifest.precision],
        dataset=candidate.data.name,
        created_at=manifest.created_at,
        config_sha256=manifest.provenance.config_sha256 or "",
        machine=describe_machine(),
        command=manifest.provenance.command,
    )


def _evaluate(answers: SplitPredictions, split: str) -> Evaluation:
    return evaluate(answers.probabilities, answers.indexes, split)


def _counts(data: DataSet, split: str) -> list[int]:
    indexes = [sample.index for sample in data.split(split)]
    return [int(n) for n in np.bincount(indexes, minlength=data.n_classes)]

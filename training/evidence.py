"""The report of a run: everything that tells how good a candidate is, measured and put together."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from contract.scores import softmax
from training.data import SPLITS, DataSet, SamplePictures
from training.evaluate import Scorer
from training.measures import Evaluation, evaluate, reliability
from training.plan import Report
from training.release import Answers, Candidate
from training.report import write_report
from training.reporting.guesses import pick_guesses, pick_mistakes, show_guesses
from training.reporting.plots import HistoryRow
from training.reporting.report_data import ReportData, Subject
from training.reporting.robustness import RobustnessRow, measure_robustness, stratified
from training.reporting.speed import measure_speed

N_ROBUSTNESS: Final = 120
"""Pictures of the robustness table: every row answers all of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """How a run went.

    Attributes:
        findings: of the data check, as text.
        config: the effective config, as text.
        history: its epochs; none where only the head was trained.
        kept_epoch: whose weights were kept, or None.
        durations_s: what took how long, by name.
    """

    findings: str
    config: str
    history: tuple[HistoryRow, ...] = ()
    kept_epoch: int | None = None
    durations_s: Mapping[str, float] = field(default_factory=dict)


def write_evidence(
    folder: Path, candidate: Candidate, data: DataSet, course: Course, report: Report
) -> dict[str, Any]:
    """Measures robustness and speed and writes the report.

    Args:
        folder: of the report.
        candidate: the version.
        data: its pictures.
        course: how its run went.
        report: takes progress lines.

    Returns:
        Everything measured, as plain values for JSON.
    """
    manifest, test = candidate.manifest, candidate.test
    scorer = Scorer(candidate.graph, manifest)
    report("report: measuring robustness and speed")
    robustness = measure_robustness(scorer, stratified(data.test, N_ROBUSTNESS))
    speed = measure_speed(candidate.graph, manifest, list(SamplePictures(data.test[:50])))
    measured = ReportData(
        subject=_subject(candidate, data),
        labels=tuple(label.name for label in data.labels),
        counts={split: _counts(data, split) for split in SPLITS},
        findings=course.findings,
        config=course.config,
        history=course.history,
        kept_epoch=course.kept_epoch,
        validation=_evaluate(candidate.validation, "validation"),
        test=_evaluate(test, "test"),
        uncalibrated=reliability(softmax(test.logits), test.indexes),
        calibration=manifest.calibration,
        robustness=robustness,
        speed=speed,
        guesses=show_guesses(data.test, test.probabilities, pick_guesses(test.probabilities)),
        mistakes=show_guesses(
            data.test, test.probabilities, pick_mistakes(test.probabilities, test.indexes)
        ),
        durations_s=course.durations_s,
    )
    page = write_report(folder, measured)
    report(f"report: {page}")
    return _plain(measured, robustness)


def _plain(measured: ReportData, robustness: tuple[RobustnessRow, ...]) -> dict[str, Any]:
    return {
        "labels": list(measured.labels),
        "validation": measured.validation.to_json(),
        "test": measured.test.to_json(),
        "calibration": measured.calibration.model_dump(mode="json"),
        "robustness": {row.name: row.top1_percent for row in robustness},
        "speed_ms": {step.step: step.median_ms for step in measured.speed},
        "durations_s": {name: round(value, 1) for name, value in measured.durations_s.items()},
    }


def _subject(candidate: Candidate, data: DataSet) -> Subject:
    manifest = candidate.manifest
    return Subject(
        model=manifest.name,
        version=manifest.version,
        architecture=manifest.architecture,
        graph="int8" if manifest.quantization else "float32",
        dataset=data.name,
        created_at=manifest.created_at,
        config_sha256=manifest.provenance.config_sha256 or "",
        machine=f"{platform.machine()}, Python {platform.python_version()}",
        command=manifest.provenance.command,
    )


def _evaluate(answers: Answers, split: str) -> Evaluation:
    return evaluate(answers.probabilities, answers.indexes, split)


def _counts(data: DataSet, split: str) -> list[int]:
    indexes = [sample.index for sample in data.split(split)]
    return [int(n) for n in np.bincount(indexes, minlength=data.n_classes)]

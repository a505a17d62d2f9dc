"""The contents of a report, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from contract.manifest import Calibration
from training.evaluation.measures import Evaluation, Reliability, ThresholdRow
from training.evaluation.robustness import RobustnessRow
from training.evaluation.speed import StepTime
from training.report.guesses import Guess
from training.report.plots import HeadScore, HistoryRow


@dataclass(frozen=True, slots=True)
class ReportSubject:
    """The version that a report describes."""

    model: str
    version: int
    architecture: str
    graph: str  # "int8", "float16" or "float32"
    dataset: str
    created_at: datetime  # with a time zone
    config_sha256: str
    machine: str  # the times were measured on
    command: str | None = None  # without local folders


@dataclass(frozen=True, slots=True, eq=False)
class ReportData:
    """Everything a report shows; all text is plain text.

    Attributes:
        subject: the version.
        labels: C names, by class index.
        counts: pictures of each class, by split, in the order to show.
        findings: of the data check.
        config: the effective config, as text.
        history: epochs in order; may be empty.
        kept_epoch: whose weights are kept.
        head: what the head alone achieved, before the epochs; None without that stage.
        validation, test: measures of the published graph, from image bytes.
        uncalibrated: the test pictures at a temperature of 1.
        calibration: the manifest's.
        thresholds: what a least probability would do to the answers to the test pictures.
        robustness: from `measure_robustness`; may be empty.
        speed: from `measure_speed`; may be empty.
        drawn: pictures drawn at random, with their guess lists.
        unsure: those with the least probable first class, likewise.
        mistakes: wrongly answered pictures, the most probable mistakes first.
        durations_s: what took how long, by name.
        notes: further facts, a sentence each.
    """

    subject: ReportSubject
    labels: tuple[str, ...]
    counts: Mapping[str, Sequence[int]]
    findings: str
    config: str
    history: Sequence[HistoryRow]
    kept_epoch: int | None
    head: HeadScore | None
    validation: Evaluation
    test: Evaluation
    uncalibrated: Reliability
    calibration: Calibration
    thresholds: tuple[ThresholdRow, ...]
    robustness: tuple[RobustnessRow, ...]
    speed: tuple[StepTime, ...]
    drawn: tuple[Guess, ...]
    unsure: tuple[Guess, ...]
    mistakes: tuple[Guess, ...]
    durations_s: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

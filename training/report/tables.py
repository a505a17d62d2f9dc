"""The sections of a report that are text and tables; `training.report.figures` has the pictures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.evaluation.measures import ClassMeasure, Evaluation
from training.report.data import ReportData
from training.report.markup import Markup, element, join, table

N_CONFUSED: Final = 20


def header(data: ReportData) -> Markup:
    """Returns the name, the accuracy and where the version comes from."""
    subject, test = data.subject, data.test
    facts = {
        "architecture": f"{subject.architecture}, {subject.graph} graph",
        "data": subject.dataset,
        "classes": f"{len(data.labels):,}",
        "made": f"{subject.created_at:%Y-%m-%d %H:%M %Z}",
        "config": f"sha256 {subject.config_sha256}",
        "command": subject.command,
    }
    pairs = [
        join(element("dt", name), element("dd", value)) for name, value in facts.items() if value
    ]
    return element(
        "header",
        element("h1", f"{subject.model}, version {subject.version}"),
        element(
            "p",
            element("strong", f"{test.top1_percent:.2f} %", class_="big"),
            f" of {test.n:,} test pictures get the right first class (95 % interval "
            f"{_interval(test)}). Measured on the published graph, from image bytes.",
        ),
        element("dl", *pairs),
        *(element("p", note, class_="note") for note in data.notes),
    )


def data_section(data: ReportData) -> Markup:
    """Returns the pictures of each class and split, and what the data check found."""
    rows: list[tuple[object, ...]] = [
        (label, *(f"{counts[index]:,}" for counts in data.counts.values()))
        for index, label in enumerate(data.labels)
    ]
    rows.append(("all", *(f"{sum(counts):,}" for counts in data.counts.values())))
    return join(
        table(("class", *data.counts), rows, "Pictures of each class, by split"),
        element("h3", "Findings of the data check"),
        element("pre", data.findings.strip() or "none", tabindex=0),
    )


def measures_section(data: ReportData) -> Markup:
    """Returns every measure of the validation and the test split, side by side."""
    splits = (data.validation, data.test)
    rows: list[tuple[object, ...]] = [
        ("pictures", *(f"{e.n:,}" for e in splits)),
        ("top-1", *(f"{e.top1_percent:.2f} %" for e in splits)),
        ("top-1, 95 % interval", *(_interval(e) for e in splits)),
        *(
            [("top-5", *(f"{e.top5_percent:.2f} %" for e in splits))]
            if len(data.labels) > 5
            else []
        ),
        ("classification error", *(f"{e.classification_error:.4f}" for e in splits)),
        ("mean squared error (Brier score)", *(f"{e.mean_squared_error:.4f}" for e in splits)),
        ("cross-entropy (NLL)", *(f"{e.cross_entropy:.4f}" for e in splits)),
        ("expected calibration error", *(f"{e.reliability.ece_percent:.2f} %" for e in splits)),
        ("F1, mean over classes", *(f"{100 * e.macro.f1:.2f} %" for e in splits)),
        ("F1, weighted by pictures", *(f"{100 * e.weighted.f1:.2f} %" for e in splits)),
    ]
    return join(
        table(("measure", "validation", "test"), rows, "Measures of the published graph"),
        element(
            "p",
            "The validation pictures picked the epoch and fitted the calibration, which flatters "
            "their column; the test pictures had no part in either.",
        ),
    )


def classes_section(data: ReportData) -> Markup:
    """Returns precision, recall and F1 of each class, lowest F1 first, without pictures last."""
    ranked = sorted(zip(data.labels, data.test.classes, strict=True), key=_rank)
    rows = [_class_row(label, measure) for label, measure in ranked]
    rows.append(_class_row("mean over classes", data.test.macro))
    rows.append(_class_row("weighted by pictures", data.test.weighted))
    header = ("class", "precision %", "recall %", "F1 %", "pictures")
    return table(header, rows, "Test pictures by class, lowest F1 first")


def confused_section(data: ReportData) -> Markup:
    """Returns the pairs of classes that are mistaken for each other most often."""
    pairs = list(_confused(data.test.confusion))[:N_CONFUSED]
    if not pairs:
        return element("p", "No test picture was answered wrongly.")
    support = data.test.confusion.sum(axis=1)
    rows: list[tuple[object, ...]] = [
        (data.labels[true], data.labels[answered], n, f"{100 * n / support[true]:.1f} %")
        for true, answered, n in pairs
    ]
    header = ("true", "answered", "pictures", "of the true class")
    return table(header, rows, "The most frequent mistakes", n_text=2)


def conformal_section(data: ReportData) -> Markup:
    """Returns the temperature, the prediction sets and the rule for unlike pictures."""
    calibration = data.calibration
    rows: list[tuple[object, ...]] = [
        (
            f"{s.coverage_percent:g} %",
            f"{s.achieved_percent:.2f} %",
            f"{s.mean_set_size:.2f}",
            f"{s.min_probability:.4g}",
        )
        for s in calibration.conformal
    ]
    header = ("coverage asked", "achieved on test", "mean classes in a set", "least probability")
    parts = [
        element(
            "p",
            f"Logits are divided by a temperature of {calibration.temperature:.4f}, fitted on "
            f"{calibration.n_fitted or 0:,} validation pictures.",
        ),
        table(header, rows, "Prediction sets: the classes a picture may show"),
    ]
    rule = calibration.unlike
    if rule is not None:
        parts.append(
            element(
                "p",
                f"A picture whose energy is below {rule.threshold:.4g} is called unlike anything "
                f"seen in training. Of the test pictures, {rule.flagged_percent:.1f} % are, wrongly.",
            )
        )
    return join(*parts)


def robustness_section(data: ReportData) -> Markup:
    """Returns what becomes of the answers when the same pictures are changed."""
    if not data.robustness:
        return element("p", "Not measured.")
    rows: list[tuple[object, ...]] = [
        (
            join(element("b", row.name), ", ", row.detail),
            f"{row.top1_percent:.1f}",
            f"{row.drop:.1f}" if abs(row.drop) >= 0.05 else "0.0",
            _bar(row.kept_percent),
        )
        for row in data.robustness
    ]
    n = data.robustness[0].n
    header = ("change", "top-1 %", "drop, points", "first class kept %")
    caption = f"The same {n} test pictures, changed before they are answered"
    return table(header, rows, caption)


def speed_section(data: ReportData) -> Markup:
    """Returns the time of one picture, step by step, and what the run took."""
    rows: list[tuple[object, ...]] = [
        (
            step.step,
            f"{step.median_ms:.2f}",
            f"{step.quartiles_ms[0]:.2f} to {step.quartiles_ms[1]:.2f}",
            step.n,
        )
        for step in data.speed
    ]
    header = ("step", "ms a picture, median", "middle half", "times")
    times: list[tuple[object, ...]] = [
        (name, _duration(seconds)) for name, seconds in data.durations_s.items()
    ]
    return join(
        table(header, rows, "One picture with one thread")
        if rows
        else element("p", "Not measured."),
        table(("part", "time"), times, "The run") if times else "",
        element("p", f"Measured on: {data.subject.machine}."),
    )


def config_section(data: ReportData) -> Markup:
    """Returns the effective config."""
    return element("pre", data.config.strip(), tabindex=0)


def _interval(evaluation: Evaluation) -> str:
    low, high = evaluation.top1_interval_percent
    return f"{low:.1f} to {high:.1f} %"


def _rank(pair: tuple[str, ClassMeasure]) -> tuple[bool, float]:
    return pair[1].support == 0, pair[1].f1


def _class_row(label: str, measure: ClassMeasure) -> tuple[object, ...]:
    if not measure.support:
        return label, "-", "-", "-", 0
    return (
        label,
        f"{100 * measure.precision:.1f}",
        f"{100 * measure.recall:.1f}",
        _bar(100 * measure.f1),
        f"{measure.support:,}",
    )


def _bar(percent: float) -> Markup:
    """Returns a number over a bar of its length."""
    return element(
        "span", f"{percent:.1f}", class_="meter", style=f"--share:{min(percent, 100):.1f}%"
    )


def _confused(confusion: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """Yields (true, answered, pictures), most pictures first, equal ones by class index."""
    wrong = confusion - np.diag(np.diag(confusion))
    places = np.argwhere(wrong)
    order = np.argsort(-wrong[places[:, 0], places[:, 1]], kind="stable")
    for true, answered in places[order]:
        yield int(true), int(answered), int(wrong[true, answered])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"

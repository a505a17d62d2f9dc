"""One self-contained page about a version: no script, nothing fetched from anywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from string import Template
from typing import Final

from training.report import figures
from training.report import tables as parts
from training.report.data import ReportData
from training.report.markup import Markup, element, join

FILE: Final = "report.html"
_TEMPLATE: Final = Path(__file__).parent / "report.html"


def _guesses(data: ReportData) -> Markup:
    return join(
        element(
            "p",
            "Below each picture are its true label and the most probable classes, the right one "
            "green and ticked. The first half was drawn at random, the second half is what the "
            "network is least sure of.",
        ),
        figures.gallery(data.guesses, data.labels),
    )


def _mistakes(data: ReportData) -> Markup:
    if not data.mistakes:
        return element("p", "No test picture was answered wrongly.")
    return join(
        element("p", "Test pictures answered wrongly, those with the surest wrong answer first."),
        figures.gallery(data.mistakes, data.labels),
    )


def _accuracy(data: ReportData) -> Markup:
    return join(
        element(
            "div",
            element("div", parts.measures_section(data)),
            element("div", parts.classes_section(data)),
            class_="side",
        ),
        element(
            "div",
            figures.confusion_section(data),
            element("div", parts.confused_section(data)),
            class_="side",
        ),
    )


def _calibration(data: ReportData) -> Markup:
    return join(figures.reliability_section(data), parts.conformal_section(data))


SECTIONS: Final[tuple[tuple[str, str, Callable[[ReportData], Markup]], ...]] = (
    ("guesses", "Guess lists", _guesses),
    ("accuracy", "Accuracy", _accuracy),
    ("mistakes", "Worst mistakes", _mistakes),
    ("calibration", "Probabilities", _calibration),
    ("robustness", "Changed pictures", parts.robustness_section),
    ("speed", "Speed", parts.speed_section),
    ("training", "Training", figures.curves_section),
    ("data", "Data", parts.data_section),
    ("config", "Config", parts.config_section),
)
"""Anchor, title and content, in the order of the page."""


def write_report(folder: Path, data: ReportData) -> Path:
    """Writes the page and its plots as PNG files.

    Args:
        folder: made where it does not exist; files of the same names are replaced.
        data: what to report.

    Returns:
        The page, `report.html`; beside it lie `curves.png`, `confusion.png`, `reliability.png`,
        `guesses.png` and `mistakes.png`, without those that would be empty.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in figures.images(data).items():
        (folder / name).write_bytes(content)
    path = folder / FILE
    path.write_text(render(data), encoding="utf-8")
    return path


def render(data: ReportData) -> str:
    """Returns the page as HTML."""
    links = [element("a", title, href=f"#{anchor}") for anchor, title, _ in SECTIONS]
    sections = [
        element("section", element("h2", title), content(data), id=anchor)
        for anchor, title, content in SECTIONS
    ]
    title = f"{data.subject.model}, version {data.subject.version}"
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=join(title),
        header=parts.header(data),
        links=element("nav", *links, aria_label="sections"),
        sections=join(*sections),
    )

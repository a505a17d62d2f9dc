"""Renders the report of a version as one self-contained page: no scripts, no external resources.

The template is `report.html`, with the macros of `macros.html` and the styles of `report.css`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from training.evaluation.classes import most_confused
from training.report import figures
from training.report.data import ReportData
from training.report.plots import MAX_NUMBERED_CLASSES

FILE: Final = "report.html"


def write_report(folder: Path, data: ReportData) -> Path:
    """Writes `report.html`, and each plot as a PNG file beside it. Returns the path of the page.

    Replaces files of the same names. Plots that would be empty are skipped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in figures.png_files(data).items():
        (folder / name).write_bytes(content)
    path = folder / FILE
    path.write_text(render(data), encoding="utf-8")
    return path


def render(data: ReportData) -> str:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not a gap in the page
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "number": format,
        "duration": _duration,
        "photograph_uri": figures.photograph_uri,
    }
    measures = zip(data.labels, data.test.classes, strict=True)
    return templates.get_template(FILE).render(
        data=data,
        # Classes without test pictures come last.
        ranked=sorted(measures, key=lambda pair: (pair[1].support == 0, pair[1].f1)),
        confused=most_confused(data.test.confusion),
        confusion=figures.confusion_plot(data),
        reliability=figures.reliability_plots(data),
        curves=figures.curve_plots(data) if data.history else [],
        numbered=len(data.labels) <= MAX_NUMBERED_CLASSES,
        small_px=figures.SMALL_PX,
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"

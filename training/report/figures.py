"""The plots of a report, embedded in its page as SVG and beside it as PNG files."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Final

from PIL import Image

from training.report.canvas import Panel, Size, to_png, to_svg
from training.report.data import ReportData
from training.report.plots import (
    GUESS_COLUMNS,
    GUESS_SIZE,
    confusion_panel,
    curve_panels,
    guess_panels,
    reliability_panel,
)

SMALL_PX: Final = 64  # thumbnails up to this size are stored as PNG and shown with sharp pixels

_CURVE: Final[Size] = (4.0, 3.4)
_DIAGRAM: Final[Size] = (4.0, 4.0)
_JPEG_QUALITY: Final = 80


@dataclass(frozen=True, slots=True)
class Plot:
    """An embedded plot: `src` is a data URI, the size is in CSS pixels (96 per inch)."""

    src: str
    alt: str
    width_px: int
    height_px: int


def curve_plots(data: ReportData) -> list[Plot]:
    first, last = data.history[0], data.history[-1]
    texts = (
        f"Loss by epoch: training from {first.train_loss:.3g} to {last.train_loss:.3g}, validation "
        f"from {first.validation_nll_calibrated:.3g} to {last.validation_nll_calibrated:.3g}",
        f"Top-1 by epoch: validation from {100 * first.validation_top1:.1f}% to "
        f"{100 * last.validation_top1:.1f}%",
        f"Learning rate by epoch: from {first.learning_rate:.3g} to {last.learning_rate:.3g}",
    )
    panels = curve_panels(data.history, data.kept_epoch, data.head)
    return [_plot(panel, _CURVE, text) for panel, text in zip(panels, texts, strict=True)]


def confusion_plot(data: ReportData) -> Plot:
    panel, size = confusion_panel(data.test.confusion, data.labels)
    text = "Confusion matrix of the test pictures; the tables beside it give the same numbers"
    return _plot(panel, size, text)


def reliability_plots(data: ReportData) -> list[Plot]:
    before, after = _reliability_panels(data)
    return [
        _plot(panel, _DIAGRAM, f"Reliability diagram {when}: ECE {measured.ece_percent:.1f}%")
        for panel, when, measured in (
            (before, "at a temperature of 1", data.uncalibrated),
            (after, "at the fitted temperature", data.test.reliability),
        )
    ]


def png_files(data: ReportData) -> dict[str, bytes]:
    confusion, size = confusion_panel(data.test.confusion, data.labels)
    files = {
        "confusion.png": to_png([confusion], size),
        "reliability.png": to_png(_reliability_panels(data), _DIAGRAM, 2),
    }
    if data.history:
        files["curves.png"] = to_png(
            curve_panels(data.history, data.kept_epoch, data.head), _CURVE, 3
        )
    galleries = {"drawn": data.drawn, "unsure": data.unsure, "mistakes": data.mistakes}
    for name, guesses in galleries.items():
        if guesses:
            panels = guess_panels(guesses, data.labels)
            files[f"{name}.png"] = to_png(panels, GUESS_SIZE, GUESS_COLUMNS, with_axes=False)
    return files


def photograph_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    if max(image.size) <= SMALL_PX:
        image.save(buffer, "PNG")
        return _data_uri("image/png", buffer.getvalue())
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return _data_uri("image/jpeg", buffer.getvalue())


def _reliability_panels(data: ReportData) -> list[Panel]:
    return [
        reliability_panel(data.uncalibrated, "Before"),
        reliability_panel(data.test.reliability, "After"),
    ]


def _plot(panel: Panel, size: Size, alt: str) -> Plot:
    width_px, height_px = (math.ceil(96 * inches) for inches in size)
    return Plot(_data_uri("image/svg+xml", to_svg(panel, size)), alt, width_px, height_px)


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"

"""The sections of a report that are pictures: curves, diagrams and the guess lists.

Plots are embedded as SVG and photographs as JPEG or PNG, both inside of the page.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Final

from PIL import Image

from training.evaluation.measures import Reliability
from training.report.canvas import Panel, Size, to_png, to_svg
from training.report.data import ReportData
from training.report.guesses import Guess
from training.report.markup import Markup, element, join
from training.report.plots import (
    GUESS_COLUMNS,
    GUESS_SIZE,
    MAX_NUMBERED_CLASSES,
    confusion_panel,
    curve_panels,
    guess_panels,
    reliability_panel,
)

_CURVE: Final[Size] = (4.4, 3.2)
_DIAGRAM: Final[Size] = (4.6, 4.4)
_SMALL_PX: Final = 64  # thumbnails up to here are stored without loss and shown pixel by pixel
_JPEG_QUALITY: Final = 80


def curves_section(data: ReportData) -> Markup:
    """Returns the curves of loss, accuracy and learning rate."""
    if not data.history:
        return element("p", "There were no epochs of gradient steps to show.")
    first, last = data.history[0], data.history[-1]
    texts = (
        f"Loss by epoch: training from {first.train_loss:.3g} to {last.train_loss:.3g}, validation "
        f"from {first.validation_nll:.3g} to {last.validation_nll:.3g}",
        f"Top-1 by epoch: validation from {100 * first.validation_top1:.1f} % to "
        f"{100 * last.validation_top1:.1f} %",
        f"Learning rate by epoch: from {first.learning_rate:.3g} to {last.learning_rate:.3g}",
    )
    panels = curve_panels(data.history, data.kept_epoch)
    images = [_plot(panel, _CURVE, text) for panel, text in zip(panels, texts, strict=True)]
    return element("div", *images, class_="plots")


def confusion_section(data: ReportData) -> Markup:
    """Returns the confusion matrix."""
    panel, size = confusion_panel(data.test.confusion, data.labels)
    text = "Confusion matrix of the test pictures; the table below lists the most frequent mistakes"
    numbered = len(data.labels) <= MAX_NUMBERED_CLASSES
    return element(
        "figure",
        element("div", _plot(panel, size, text), class_="scroll", tabindex=0),
        element(
            "figcaption",
            "Rows are true classes, columns what was answered"
            + ("; numbers are pictures. " if numbered else ", by class index. ")
            + "Right answers are blue and mistakes orange, stronger for a larger share of the row.",
        ),
    )


def reliability_section(data: ReportData) -> Markup:
    """Returns the reliability diagrams before and after the temperature."""
    images = [
        _plot(panel, _DIAGRAM, f"Reliability diagram {when}: ECE {measured.ece_percent:.1f} %")
        for panel, (when, measured) in zip(_reliability_panels(data), _measured(data), strict=True)
    ]
    return join(
        element("div", *images, class_="plots"),
        element(
            "p",
            "Test pictures by the probability of their first class: on the dashed line it is right "
            "as often as its probability says. Lines are 95 % intervals, bars the share of the "
            "pictures.",
        ),
    )


def gallery(guesses: Sequence[Guess], labels: Sequence[str]) -> Markup:
    """Returns a card a picture: the photograph, its true label and bars of the first classes."""
    return element("div", *(_card(guess, labels) for guess in guesses), class_="gallery")


def images(data: ReportData) -> dict[str, bytes]:
    """Returns the PNG files of a report by name; those that would be empty are left out."""
    confusion, size = confusion_panel(data.test.confusion, data.labels)
    files = {
        "confusion.png": to_png([confusion], size),
        "reliability.png": to_png(_reliability_panels(data), _DIAGRAM, 2),
    }
    if data.history:
        panels = curve_panels(data.history, data.kept_epoch)
        files["curves.png"] = to_png(panels, _CURVE, 3)
    for name, guesses in (("guesses.png", data.guesses), ("mistakes.png", data.mistakes)):
        if guesses:
            panels = guess_panels(guesses, data.labels)
            files[name] = to_png(panels, GUESS_SIZE, GUESS_COLUMNS, with_axes=False)
    return files


def _measured(data: ReportData) -> tuple[tuple[str, Reliability], ...]:
    temperature = data.calibration.temperature
    return (
        ("at a temperature of 1", data.uncalibrated),
        (f"at a temperature of {temperature:.3g}", data.test.reliability),
    )


def _reliability_panels(data: ReportData) -> list[Panel]:
    titles = ("Before", "After")
    return [
        reliability_panel(measured, title)
        for title, (_, measured) in zip(titles, _measured(data), strict=True)
    ]


def _card(guess: Guess, labels: Sequence[str]) -> Markup:
    true_label = labels[guess.index]
    seen = any(index == guess.index for index, _ in guess.guesses)
    bars = [
        element(
            "li",
            element("span", labels[index], " \N{CHECK MARK}" if index == guess.index else ""),
            element("span", f"{100 * probability:.1f} %"),
            class_="right" if index == guess.index else None,
            style=f"--share:{100 * probability:.1f}%",
        )
        for index, probability in guess.guesses
    ]
    missing = "" if seen else element("p", "the true class is not among these", class_="note")
    return element(
        "figure",
        _photograph(guess.thumbnail, f"A picture of the class {true_label}"),
        element("figcaption", element("b", true_label), element("small", guess.name)),
        element("ol", *bars),
        missing,
        class_="card",
    )


def _photograph(image: Image.Image, text: str) -> Markup:
    small = max(image.size) <= _SMALL_PX
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return element(
        "img",
        src=_data_uri("image/png" if small else "image/jpeg", buffer.getvalue()),
        alt=text,
        class_="small" if small else None,
    )


def _plot(panel: Panel, size: Size, text: str) -> Markup:
    """Embeds a plot at its natural width, 96 px to the inch."""
    return element(
        "img",
        src=_data_uri("image/svg+xml", to_svg(panel, size)),
        alt=text,
        width=math.ceil(96 * size[0]),
        height=math.ceil(96 * size[1]),
    )


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"

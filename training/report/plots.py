"""Plots of a report: learning curves, confusion matrix, reliability diagram, guess lists.

Each is a panel, or several, for `training.report.canvas` to draw. The colours are those of Okabe and
Ito, which colour-blind people can tell apart. No fact is shown by colour alone.

Shapes: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.comparison import wilson_interval
from training.evaluation.measures import Bin, Reliability
from training.report.canvas import INK, Panel, Size
from training.report.guesses import Guess

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE: Final = "#0072B2"
ORANGE: Final = "#D55E00"
PALE_GREEN: Final = "#8FD6BF"  # the palette's green, light enough for dark letters on it
GREY: Final = "#C3CAD3"
MUTED: Final = "#6B7280"

# With more classes, the confusion matrix shows colours only: labels and numbers would not fit.
MAX_NUMBERED_CLASSES: Final = 40

GUESS_SIZE: Final[Size] = (2.4, 3.1)
GUESS_COLUMNS: Final = 4

_MAX_LABEL: Final = 18  # characters


class HistoryRow(Protocol):
    """One epoch, counted from 1. Losses are means over pictures; top-1 is 0..1."""

    @property
    def epoch(self) -> int: ...
    @property
    def train_loss(self) -> float: ...
    @property
    def train_top1(self) -> float: ...
    @property
    def validation_nll_calibrated(self) -> float: ...
    @property
    def validation_top1(self) -> float: ...
    @property
    def learning_rate(self) -> float: ...


class HeadScore(Protocol):
    """The head alone, on the validation pictures: mean NLL and top-1, 0..1."""

    @property
    def nll_calibrated(self) -> float: ...
    @property
    def top1(self) -> float: ...


def curve_panels(
    history: Sequence[HistoryRow], kept_epoch: int | None = None, head: HeadScore | None = None
) -> list[Panel]:
    """Returns the panels of loss, accuracy and learning rate.

    Args:
        history: epochs in order; values that are not finite leave gaps.
        kept_epoch: the one whose weights are kept, marked in the first two.
        head: where the epochs started from, marked there at 0.
    """
    epochs = [row.epoch for row in history]
    marker = "o" if len(epochs) == 1 else None

    def curves(axes: Axes, title: str, lines: dict[str, list[float]], start: float | None) -> None:
        styles = ((ORANGE, "--"), (BLUE, "-"))
        for (name, values), (colour, dashes) in zip(lines.items(), styles, strict=False):
            axes.plot(epochs, values, dashes, color=colour, label=name, marker=marker)
        if kept_epoch is not None:
            axes.axvline(kept_epoch, color=MUTED, linewidth=1, linestyle=":", label="kept")
        if start is not None:
            axes.plot([0], [start], "D", markersize=5, color=BLUE, label="head alone, validation")
        _finish(axes, title, "epoch")
        axes.locator_params(axis="x", integer=True)
        _legend_below(axes)

    def loss(axes: Axes) -> None:
        train = [row.train_loss for row in history]
        validation = [row.validation_nll_calibrated for row in history]
        lines = {"training": train, "validation (NLL)": validation}
        curves(axes, "Loss", lines, head.nll_calibrated if head else None)

    def accuracy(axes: Axes) -> None:
        train = [100 * row.train_top1 for row in history]
        validation = [100 * row.validation_top1 for row in history]
        lines = {"training (augmented)": train, "validation": validation}
        curves(axes, "Top-1, %", lines, 100 * head.top1 if head else None)

    def learning_rate(axes: Axes) -> None:
        rates = [row.learning_rate for row in history]
        axes.plot(epochs, rates, color=BLUE, marker=marker)
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", scilimits=(-2, 3))
        _finish(axes, "Learning rate", "epoch")
        axes.locator_params(axis="x", integer=True)

    return [loss, accuracy, learning_rate]


def reliability_panel(measured: Reliability, title: str) -> Panel:
    """Returns the panel of a reliability diagram.

    Points are bins with their 95 % Wilson intervals, on the dashed line where the probabilities mean
    what they say; grey bars are the shares of the pictures.

    Args:
        measured: bins and ECE.
        title: what was measured.
    """

    def draw(axes: Axes) -> None:
        filled = [b for b in measured.bins if b.n]
        n = sum(b.n for b in filled)
        width = 1 / len(measured.bins)
        centres = [(b.lower + b.upper) / 2 for b in filled]
        axes.bar(
            centres, [b.n / n for b in filled], 0.9 * width, color=GREY, label="share of pictures"
        )
        axes.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1, label="perfectly calibrated")
        points = [(b.mean_probability or 0.0, b.accuracy or 0.0, _errors(b)) for b in filled]
        axes.errorbar(
            [x for x, _, _ in points],
            [y for _, y, _ in points],
            yerr=np.array([e for _, _, e in points]).T,
            fmt="o",
            color=BLUE,
            ecolor="#7FB3D5",
            label="accuracy",
            clip_on=False,
        )
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        _finish(axes, f"{title}: ECE {measured.ece_percent:.1f}%, n = {n}", "probability")
        _legend_below(axes)

    return draw


def confusion_panel(confusion: NDArray[np.int64], labels: Sequence[str]) -> tuple[Panel, Size]:
    """Returns the panel of a confusion matrix and its size.

    Args:
        confusion: int64, shape (C, C), true classes in rows.
        labels: C names.
    """
    n_classes = len(labels)
    numbered = n_classes <= MAX_NUMBERED_CLASSES
    side = 2.4 + 0.42 * max(n_classes, 4) if numbered else 8.0
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)  # (C, C)

    def draw(axes: Axes) -> None:
        axes.imshow(_colours(shares))
        axes.set(xlabel="predicted", ylabel="true")
        axes.spines[:].set_visible(False)
        if not numbered:
            axes.set(xlabel="predicted class index", ylabel="true class index")
            return
        names = [shorten(label) for label in labels]
        axes.set_xticks(range(n_classes), names, rotation=90)
        axes.set_yticks(range(n_classes), names)
        axes.tick_params(length=0)
        for row, column in np.argwhere(confusion):
            strong = shares[row, column] > 0.4
            axes.text(
                column,
                row,
                str(confusion[row, column]),
                ha="center",
                va="center",
                fontsize=9 if n_classes <= 20 else 7,
                color="white" if strong else INK,
            )

    return draw, (side, side)


def guess_panels(guesses: Sequence[Guess], labels: Sequence[str]) -> list[Panel]:
    """Returns one panel per picture, with its true label and bars of the most probable classes."""
    return [_guess_panel(guess, labels) for guess in guesses]


def _guess_panel(guess: Guess, labels: Sequence[str]) -> Panel:
    def draw(axes: Axes) -> None:
        axes.set_axis_off()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        picture = axes.inset_axes((0.0, 0.5, 1.0, 0.5))
        picture.imshow(np.asarray(guess.thumbnail))
        picture.set_axis_off()
        name = shorten(labels[guess.index], 28)
        axes.text(0.5, 0.445, name, ha="center", va="center", weight="bold")
        for place, (index, probability) in enumerate(guess.guesses):
            height = 0.365 - 0.08 * place
            right = index == guess.index
            axes.barh(height, 1.0, 0.068, color="#F3F4F6")
            axes.barh(height, probability, 0.068, color=PALE_GREEN if right else GREY)
            text = shorten(labels[index], 22) + (" \N{CHECK MARK}" if right else "")
            number = f"{100 * probability:.1f}"
            axes.text(0.02, height, text, va="center_baseline", fontsize=8)
            axes.text(0.98, height, number, va="center_baseline", ha="right", fontsize=8)

    return draw


def shorten(label: str, length: int = _MAX_LABEL) -> str:
    """Returns a label in one line of at most `length` characters, an ellipsis for what is missing."""
    text = " ".join(label.split())
    return text if len(text) <= length else text[: length - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _errors(point: Bin) -> tuple[float, float]:
    # How far the Wilson interval reaches below and above the accuracy.
    accuracy = point.accuracy or 0.0
    low, high = wilson_interval(round(accuracy * point.n), point.n)
    return max(0.0, accuracy - low), max(0.0, high - accuracy)


def _colours(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns RGB, 0..1, shape (C, C, 3): white to blue on the diagonal, to orange elsewhere."""
    full = np.where(np.eye(len(shares), dtype=bool)[..., None], _rgb(BLUE), _rgb(ORANGE))
    strength = np.sqrt(shares)[..., None]  # the root makes a few mistakes visible
    colours: NDArray[np.float64] = 1.0 - strength * (1.0 - full)
    return colours


def _rgb(colour: str) -> NDArray[np.float64]:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _legend_below(axes: Axes) -> None:
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.45, -0.17),
        ncols=2 if len(axes.get_legend_handles_labels()[0]) > 3 else 3,
        fontsize=8.5,
        columnspacing=1.2,
        handlelength=1.6,
        handletextpad=0.5,
    )


def _finish(axes: Axes, title: str, across: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.grid(visible=True)
    axes.set_axisbelow(True)

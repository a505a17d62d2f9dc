import io
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from training.evaluation.measures import reliability
from training.report import canvas, plots
from training.report.guesses import Guess

HOSTILE = ("$x_{", "漢字", "a\nb <i>", "very long label of a class that is not shortened")
SIZE = (2.0, 1.5)


def history(n: int) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(
            epoch=i + 1,
            train_loss=2.0 / (i + 1),
            train_top1=0.5,
            validation_nll_calibrated=float("nan") if i == 1 else 1.0,
            validation_top1=0.6,
            learning_rate=1e-3,
        )
        for i in range(n)
    ]


def opened(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    image.load()
    return image


def axes_of(panel: canvas.Panel):
    """Draws a panel and returns its axes."""
    seen = []

    def record(axes):
        panel(axes)
        seen.append(axes)

    canvas.to_png([record], (4.0, 4.0))
    return seen[0]


@pytest.mark.parametrize(("n", "kept"), [(1, None), (1, 1), (5, 3)])
def test_curve_panels_draw_any_number_of_epochs(n, kept):
    panels = plots.curve_panels(history(n), kept)

    image = opened(canvas.to_png(panels, SIZE, 3))

    assert len(panels) == 3
    assert image.size == (3 * 240, 180)


def test_curve_panels_show_the_values_and_the_epoch_that_is_kept():
    loss, accuracy, _ = plots.curve_panels(history(4), 3)

    first, second, kept = axes_of(loss).lines

    np.testing.assert_array_equal(first.get_ydata(), [2.0, 1.0, 2 / 3, 0.5])
    assert np.isnan(second.get_ydata()).tolist() == [False, True, False, False]
    assert list(kept.get_xdata()) == [3, 3]
    np.testing.assert_array_equal(axes_of(accuracy).lines[1].get_ydata(), [60.0] * 4)


def test_curve_panels_start_at_the_result_of_the_head_stage():
    head = SimpleNamespace(nll_calibrated=0.9, top1=0.4)

    loss, accuracy, rate = (axes_of(p) for p in plots.curve_panels(history(4), 3, head))

    starts = [axes.lines[-1].get_xydata().tolist() for axes in (loss, accuracy)]
    assert starts == [[[0, 0.9]], [[0, 40.0]]]
    assert len(rate.lines) == 1


def test_reliability_panel_shows_a_point_for_each_filled_bin():
    answers = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    panel = plots.reliability_panel(reliability(answers, np.array([0, 1, 0])), "After")

    axes = axes_of(panel)

    (points,) = [line for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(points.get_xdata(orig=False), [0.6, 0.9])
    np.testing.assert_allclose(points.get_ydata(orig=False), [1.0, 0.5])
    assert axes.get_title(loc="left") == "After: ECE 40.0%, n = 3"


def test_confusion_panel_writes_the_counts_that_are_not_zero():
    panel, _ = plots.confusion_panel(np.array([[3, 1], [0, 4]]), ("a", "b"))

    texts = {text.get_position(): text.get_text() for text in axes_of(panel).texts}

    assert texts == {(0, 0): "3", (1, 0): "1", (1, 1): "4"}


@pytest.mark.parametrize("n_classes", [1, 2, 40, 41])
def test_confusion_panel_is_readable_for_any_number_of_classes(n_classes):
    confusion = np.eye(n_classes, dtype=np.int64) * 5
    labels = [f"class {i}" for i in range(n_classes)]

    panel, size = plots.confusion_panel(confusion, labels)

    assert 4 <= size[0] <= 20
    axes = axes_of(panel)
    numbered = n_classes <= plots.MAX_NUMBERED_CLASSES
    assert len(axes.texts) == (n_classes if numbered else 0)
    assert ("class 0" in [t.get_text() for t in axes.get_yticklabels()]) is numbered


def test_confusion_colours_differ_for_right_and_wrong():
    colours = plots._colours(np.array([[1.0, 0.0], [1.0, 0.0]]))

    np.testing.assert_allclose(colours[0, 0], np.array([0x00, 0x72, 0xB2]) / 255)
    np.testing.assert_allclose(colours[1, 0], np.array([0xD5, 0x5E, 0x00]) / 255)
    np.testing.assert_allclose(colours[0, 1], 1.0)


def test_guess_panel_marks_the_right_class_by_colour_and_tick():
    guess = Guess("x.png", 1, ((0, 0.7), (1, 0.3)), Image.new("RGB", (8, 6)))

    axes = axes_of(*plots.guess_panels([guess], ("cat", "dog")))

    texts = [text.get_text() for text in axes.texts]
    assert texts == ["dog", "cat", "70.0", "dog ✓", "30.0"]
    bars = [(round(bar.get_width(), 3), bar.get_facecolor()) for bar in axes.patches]
    assert [width for width, _ in bars] == [1.0, 0.7, 1.0, 0.3]
    assert bars[1][1] != bars[3][1]


def test_panels_of_hostile_labels_are_drawn():
    confusion, size = plots.confusion_panel(np.eye(4, dtype=np.int64), HOSTILE)
    guess = Guess("x", 0, tuple((i, 0.25) for i in range(4)), Image.new("RGB", (8, 6)))

    assert opened(canvas.to_png([confusion], size)).width > 100
    assert opened(canvas.to_png(plots.guess_panels([guess] * 3, HOSTILE), SIZE, 2)).height == 360


@pytest.mark.parametrize(
    ("label", "expected"), [("short", "short"), ("a\n b", "a b"), ("x" * 30, "x" * 17 + "…")]
)
def test_shorten_gives_one_short_line(label, expected):
    assert plots.shorten(label) == expected


def test_to_svg_of_the_same_panel_is_the_same_file():
    panel = plots.curve_panels(history(3))[0]

    first = canvas.to_svg(panel, SIZE)

    assert first == canvas.to_svg(panel, SIZE)
    assert re.search(rb"<svg[^>]* width=\"144pt\"", first)
    assert b"<script" not in first


def test_canvas_leaves_settings_and_environment_alone(monkeypatch):
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    matplotlib = canvas._import_matplotlib()
    before = dict(matplotlib.rcParams)

    canvas.to_png([lambda _: None], SIZE)

    assert dict(matplotlib.rcParams) == before
    assert "MPLCONFIGDIR" not in os.environ


def test_canvas_imports_matplotlib_late_and_writes_nothing_into_the_home_folder(tmp_path):
    code = (
        "import sys, training.report.page, training.report.canvas;"
        "assert 'matplotlib' not in sys.modules;"
        "training.report.canvas.to_svg(lambda axes: None, (1, 1))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MPLCONFIGDIR"}
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        environment[name] = str(tmp_path)

    subprocess.run([sys.executable, "-c", code], env=environment, check=True)  # noqa: S603

    written = [path for path in tmp_path.rglob("*") if "fontconfig" not in path.parts]
    assert written == []

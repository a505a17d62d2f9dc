"""Draws panels (functions that draw on matplotlib axes) as SVG and PNG files.

matplotlib is imported with the first panel. Of the local machine, only its fonts affect the result.
"""

from __future__ import annotations

import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK: Final = "#1B1F24"

Panel = Callable[["Axes"], None]
Size = tuple[float, float]
"""Width and height of one panel in inches."""

_DPI: Final = 120
# The first comes with matplotlib. The others, if installed, add scripts that it lacks.
_FONTS: Final = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
)

_STYLE: Final = {
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a label may hold dollar signs
    "axes.labelcolor": INK,
    "axes.edgecolor": "#6B7280",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "grid.color": "#E5E7EB",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "convserve",  # equal plots are equal files
}


def to_svg(panel: Panel, size: Size) -> bytes:
    return _render([panel], size, file_format="svg")


def to_png(
    panels: Sequence[Panel], size: Size, columns: int = 1, *, with_axes: bool = True
) -> bytes:
    """Draws panels of equal size, row by row; `with_axes` leaves room for titles and numbers."""
    return _render(panels, size, columns, with_axes=with_axes)


def _render(
    panels: Sequence[Panel],
    size: Size,
    columns: int = 1,
    *,
    file_format: str = "png",
    with_axes: bool = True,
) -> bytes:
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figsize = (size[0] * columns, size[1] * rows)
    buffer = io.BytesIO()
    with _style() as figure_module:
        figure = figure_module.Figure(figsize, layout="constrained" if with_axes else None)
        if not with_axes:
            figure.subplots_adjust(0.01, 0.01, 0.99, 0.99, wspace=0.06, hspace=0.06)
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, panel in zip(grid, panels, strict=False):
            panel(axes)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        metadata = {"Date": None} if file_format == "svg" else {"Software": None}
        figure.savefig(buffer, format=file_format, dpi=_DPI, metadata=metadata)
    return buffer.getvalue()


@contextmanager
def _style() -> Iterator[Any]:
    matplotlib = _import_matplotlib()
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        known = {font.name for font in matplotlib.font_manager.fontManager.ttflist}
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["font.family"] = [name for name in _FONTS if name in known]
        # Labels may be in a script that none of them has; plots show boxes then, the page does not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield matplotlib.figure


def _import_matplotlib() -> Any:
    # Without a configuration folder, matplotlib writes a font cache below the home folder.
    usual = os.environ.get("MPLCONFIGDIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MPLCONFIGDIR"] = usual or folder
        try:
            matplotlib = import_module("matplotlib")
            import_module("matplotlib.figure")
            import_module("matplotlib.font_manager")
        finally:
            if usual is None:
                del os.environ["MPLCONFIGDIR"]
    return matplotlib

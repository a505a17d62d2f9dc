"""Draws the README's two pictures: a photograph with its predictions, and the benchmark.

Run as `python -m docs.figures` (`make figures`) from the root of the repository.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Final

from PIL import Image

ROOT: Final = Path(__file__).resolve().parent.parent
IMAGES: Final = ROOT / "docs" / "images"
PHOTO: Final = ROOT / "examples" / "cat.jpg"
RECORD: Final = ROOT / "benchmarks" / "records" / "2026-11-29-event-loop" / "results.json"
N_CLIENTS: Final = 32

NAMES: Final = {
    "convserve": "convserve",
    "convserve_processes": "convserve, two workers",
    "mosec": "Mosec",
    "fastapi_tuned": "FastAPI, tuned by hand",
}

_ROW_PX: Final = 34
_INK, _MUTED, _PANEL = "#1f2328", "#57606a", "#ffffff"
_ACCENT, _PLAIN = "#0b7285", "#ced4da"

Bar = tuple[str, float, str]
"""Label, length from 0 to 1, and the text behind the bar."""


def guesses_svg() -> str:
    """Returns the example photograph beside its predictions as bars.

    Raises:
        CalledProcessError: `convserve classify` failed.
    """
    command = [sys.executable, "-m", "convserve", "classify", str(PHOTO), "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)  # noqa: S603
    predictions = json.loads(done.stdout)["predictions"]
    bars = [
        (one["label"], one["probability"], f"{100 * one['probability']:.0f}%")
        for one in predictions
    ]

    with Image.open(PHOTO) as photo:
        photo.thumbnail((280, 280))
        size, jpeg = photo.size, BytesIO()
        photo.save(jpeg, "JPEG", quality=80)
    source = "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
    height = max(size[1] + 40, 40 + _ROW_PX * len(bars))
    left = size[0] + 50
    parts = [
        f'<image x="20" y="{(height - size[1]) // 2}" width="{size[0]}" height="{size[1]}"'
        f' href="{source}"/>',
        *_bars(bars, left=left, label_px=110, top=(height - _ROW_PX * len(bars)) // 2),
    ]
    return _svg(760, height, "A photograph of a cat and its five most probable classes", parts)


def benchmark_svg() -> str:
    """Returns requests a second of every server as bars: int8, 32 clients, medians."""
    rates: dict[str, list[float]] = {name: [] for name in NAMES}
    for one in json.loads(RECORD.read_text("utf-8"))["measurements"]:
        if (one["precision"], one["scenario"]) == ("int8", f"closed-{N_CLIENTS}"):
            rates[one["server"]].append(one["per_s"])
    medians = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    ranked = sorted(medians, key=lambda name: -medians[name])
    longest = max(medians.values())
    bars = [(NAMES[name], medians[name] / longest, f"{medians[name]:.0f}") for name in ranked]

    title = f"Requests a second, {N_CLIENTS} clients, int8, two cores"
    parts = [
        f'<text x="20" y="30" font-size="15" font-weight="600" fill="{_INK}">{title}</text>',
        *_bars(bars, left=20, label_px=190, top=44),
    ]
    return _svg(760, 56 + _ROW_PX * len(bars), title, parts)


def _bars(bars: Sequence[Bar], *, left: int, label_px: int, top: int) -> list[str]:
    start, length_px = left + label_px, 690 - left - label_px
    parts = []
    for row, (label, share, text) in enumerate(bars):
        y, end = top + row * _ROW_PX, start + max(2.0, share * length_px)
        fill = _ACCENT if row == 0 else _PLAIN
        parts += [
            f'<text x="{start - 10}" y="{y + 21}" text-anchor="end" font-size="14"'
            f' fill="{_INK}">{escape(label)}</text>',
            f'<rect x="{start}" y="{y + 6}" width="{end - start:.1f}" height="22" rx="3"'
            f' fill="{fill}"/>',
            f'<text x="{end + 8:.1f}" y="{y + 21}" font-size="14" fill="{_MUTED}">{text}</text>',
        ]
    return parts


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" role="img" font-family="system-ui, sans-serif">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="{_PANEL}"/>\n{body}\n</svg>\n'
    )


def main() -> None:
    """Writes both pictures."""
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / "guesses.svg").write_text(guesses_svg(), "utf-8")
    (IMAGES / "benchmark.svg").write_text(benchmark_svg(), "utf-8")


if __name__ == "__main__":
    main()

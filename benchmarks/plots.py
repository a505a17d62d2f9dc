"""Plots of a record as SVG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import capacity, values

_OURS, _OTHERS = "tab:orange", "tab:blue"


def write(record: dict[str, Any], folder: Path) -> None:
    """Writes `throughput.svg` and `latency.svg`."""
    import matplotlib as mpl  # slow to import, and nothing else here needs it

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "benchmark"  # the same record gives the same file
    from matplotlib import pyplot

    for name, draw in (("throughput", _throughput), ("latency", _latency)):
        figure = pyplot.figure(figsize=(9, 4.5), layout="constrained")
        draw(record, figure)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)


def _names(record: dict[str, Any], precision: str) -> list[str]:
    measured = [one for one in record["measurements"] if one["precision"] == precision]
    return list(dict.fromkeys(one["server"] for one in measured))


def _throughput(record: dict[str, Any], figure: Any) -> None:
    precisions = record["options"]["precisions"]
    for axes, precision in zip(
        figure.subplots(1, len(precisions), squeeze=False)[0], precisions, strict=True
    ):
        rates = {name: capacity(record, precision, name) for name in _names(record, precision)}
        there = sorted((rate.median, name, rate) for name, rate in rates.items() if rate)

        axes.barh(
            [name for _, name, _ in there],
            [median for median, _, _ in there],
            xerr=[
                [median - rate.low for median, _, rate in there],
                [rate.high - median for median, _, rate in there],
            ],
            color=[_OURS if name == "convserve" else _OTHERS for _, name, _ in there],
        )

        axes.set_title(f"{precision}: requests/s, best of 8, 32, 64 clients")


def _latency(record: dict[str, Any], figure: Any) -> None:
    precision = record["options"]["precisions"][0]
    axes = figure.subplots()
    for name in _names(record, precision):
        points = []
        # Not 200%: a server that refuses nothing has no p99 there, only a growing queue.
        for share in (50, 80, 120):
            where = {"precision": precision, "server": name, "scenario": f"open-{share}"}
            rate = values(record, "rate_per_s", **where)
            p99 = values(record, "latency_p99_ms", **where)
            if rate and p99:
                points.append((rate.median, p99.median))
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=name)

    axes.set(yscale="log", xlabel="requests/s, open loop", ylabel="p99 ms")
    axes.set_title(
        f"{precision}: latency from the intended send time, 50%, 80% and 120% of capacity"
    )
    # A record of closed loops only has no lines, and matplotlib warns about an empty legend.
    if axes.get_legend_handles_labels()[0]:
        axes.legend()

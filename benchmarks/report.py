"""Markdown tables from a record: medians over the rounds, lowest and highest in parentheses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from benchmarks.measures import Spread, spread

Record = dict[str, Any]
_MB: Final = 1e6
_LOADED: Final = ("closed-8", "closed-32", "closed-64")  # one client cannot load all cores
# The frameworks come first in the list of versions.
_PACKAGES: Final = ("fastapi", "uvicorn", "litserve", "bentoml", "mlserver", "ray", "mosec")


def values(record: Record, key: str, **where: str) -> Spread | None:
    """Returns the number `key` over all rounds of one precision, server and scenario."""
    return spread(
        [
            one.get(key)
            for one in record["measurements"]
            if all(one[name] == value for name, value in where.items())
        ]
    )


def capacity(record: Record, precision: str, server: str) -> Spread | None:
    """Returns the requests/s of the fastest closed loop: 8, 32 or 64 clients."""
    found = [
        values(record, "per_s", precision=precision, server=server, scenario=scenario)
        for scenario in _LOADED
    ]
    there = [one for one in found if one is not None]
    return max(there, key=lambda one: one.median) if there else None


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table with every column but the first aligned to the right."""
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)], *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: Spread | None, digits: int = 1, scale: float = 1.0) -> str:
    """Returns "median (low-high)", only the median after a single round, a dash without a value."""
    if value is None:
        return "-"
    middle = f"{value.median * scale:.{digits}f}"
    if value.n == 1:
        return middle
    return f"{middle} ({value.low * scale:.{digits}f}-{value.high * scale:.{digits}f})"


def markdown(record: Record) -> str:
    """Returns the whole page of a record."""
    parts = [f"# Benchmark of {record['started_at']}\n", _conditions(record)]
    for precision in record["options"]["precisions"]:
        parts.append(f"## {precision}: closed loop\n\n{_closed_loop(record, precision)}")
        parts.append(f"## {precision}: the bare limit\n\n{_bare(record, precision)}")

    first = record["options"]["precisions"][0]
    parts += [
        f"## {first}: open loop\n\n{_open_loop(record, first)}",
        f"## {first}: overload\n\n{_overload(record, first)}",
        f"## {first}: footprint and broken pictures\n\n{_footprint(record, first)}",
        f"## Settings\n\n{_settings(record)}",
        f"## Versions\n\n{_versions(record)}",
    ]

    if record["failures"]:
        parts.append("## Failures\n\n" + "\n".join(f"- {one}" for one in record["failures"]) + "\n")
    return "\n".join(parts)


def machine_line(machine: Mapping[str, Any]) -> str:
    """Returns what `machine.describe` found, without a full stop."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instructions'])}), "
        f"{machine['memory_mb']} MB, Linux {machine['kernel']}, Python {machine['python']}"
    )


def _conditions(record: Record) -> str:
    options = record["options"]
    return (
        f"{machine_line(record['machine'])}. Rounds: {options['rounds']}, interleaved over all servers; {options['seconds']:g} s per "
        f"load; {options.get('n_photos', 0)} photos in rotation; load generators on the same cores. "
        "Numbers are medians over the rounds, lowest and highest in parentheses. "
        f"Goodput is answers within {options['deadline_ms']} ms of the intended send time.\n"
    )


def _servers(record: Record, precision: str) -> list[str]:
    """Returns the measured servers, fastest first."""
    names = {one["server"] for one in record["measurements"] if one["precision"] == precision}

    def rate(name: str) -> float:
        found = capacity(record, precision, name)
        return found.median if found else 0.0

    return sorted(names, key=lambda name: (-rate(name), name))


def _rows(
    record: Record, precision: str, cells: Sequence[Callable[[Callable[..., Spread | None]], str]]
) -> list[list[str]]:
    """Returns a row per server; each cell gets a function that looks up the server's numbers."""
    rows = []
    for server in _servers(record, precision):
        # The default binds this round's server; a closure would see the last one.
        def look(scenario: str, key: str, server: str = server) -> Spread | None:
            return values(record, key, precision=precision, server=server, scenario=scenario)

        rows.append([server, *(cell(look) for cell in cells)])
    return rows


def _closed_loop(record: Record, precision: str) -> str:
    rates = [(n, f"closed-{n}") for n in (1, 8, 32, 64)]
    header = ["server", *(f"requests/s, {n} client{'s' * (n > 1)}" for n, _ in rates)]
    header += ["CPU ms/request, 32", "p50 ms, 1", "p99 ms, 1", "p50 ms, 32", "p99 ms, 32"]
    cells: list[Any] = [
        (lambda look, scenario=scenario: number(look(scenario, "per_s"))) for _, scenario in rates
    ]
    cells.append(lambda look: number(look("closed-32", "cpu_ms_per_request"), 2))

    for scenario in ("closed-1", "closed-32"):
        for key in ("latency_p50_ms", "latency_p99_ms"):
            # Defaults bind the loop's values, here and below.
            cells.append(lambda look, s=scenario, k=key: number(look(s, k)))  # noqa: PERF401
    return table(header, _rows(record, precision, cells))


def _bare(record: Record, precision: str) -> str:
    rounds = record["bare"].get(precision, [])
    rows = []

    for prepare in ("library", "pillow"):
        for loop in ("threads", "processes", "lone"):
            found = [one[prepare][loop] for one in rounds]
            rows.append(
                [
                    f"{prepare}, {loop}",
                    number(spread([one["per_s"] for one in found])),
                    number(spread([one["cpu_ms_per_image"] for one in found]), 2),
                    number(spread([one.get("p50_ms") for one in found]), 2),  # of a lone client
                ]
            )
    return table(["preparation, loop", "images/s", "CPU ms/image", "p50 ms"], rows)


def _open_loop(record: Record, precision: str) -> str:
    header, cells = ["server"], []
    for share in (50, 80, 120):
        header += [f"requests/s at {share} %", f"p50 ms at {share} %", f"p99 ms at {share} %"]
        for key in ("rate_per_s", "latency_p50_ms", "latency_p99_ms"):
            cells.append(lambda look, s=f"open-{share}", k=key: number(look(s, k)))  # noqa: PERF401

    # Only convserve has this scenario, so it is a sentence below the table.
    found = {
        key: values(record, key, precision=precision, scenario="open-best-other-80")
        for key in ("rate_per_s", "latency_p50_ms", "latency_p99_ms")
    }

    lines = table(header, _rows(record, precision, cells))
    if found["rate_per_s"] is None:
        return lines
    return lines + (
        "\nconvserve at 80% of the best other's capacity, "
        f"{number(found['rate_per_s'])} requests/s: p50 {number(found['latency_p50_ms'])} ms, "
        f"p99 {number(found['latency_p99_ms'])} ms.\n"
    )


def _overload(record: Record, precision: str) -> str:
    header, cells = ["server"], []
    columns = {
        "goodput/s": ("goodput_per_s", 1),
        "p99 ms": ("latency_p99_ms", 0),
        "refused": ("n_refused", 0),
        "refusal p50 ms": ("refusal_p50_ms", 1),
        "refusal p99 ms": ("refusal_p99_ms", 1),
        "Retry-After %": ("retry_after_percent", 0),
    }

    for share in (120, 200):
        for name, (key, digits) in columns.items():
            header.append(f"{name} at {share} %")
            cells.append(lambda look, s=f"open-{share}", k=key, d=digits: number(look(s, k), d))

    rows = _rows(record, precision, cells)
    for row in rows:
        # Capacity belongs to no scenario, so no cell can look it up.
        row.insert(1, number(capacity(record, precision, row[0])))
    header.insert(1, "capacity/s")
    return table(header, rows)


def _footprint(record: Record, precision: str) -> str:
    header = ["server", "start s", "memory MB, warm", "memory MB, after 64 clients"]
    header += ["idle % of a core", "top-1 as reference %", "innocents failed", "of", "installed MB"]
    cells: list[Any] = [
        lambda look: number(look("start", "cold_start_s"), 2),
        lambda look: number(look("start", "memory_warm_bytes"), 0, 1 / _MB),
        lambda look: number(look("closed-64", "memory_bytes"), 0, 1 / _MB),
        lambda look: number(look("start", "idle_core_percent"), 2),
        lambda look: number(look("start", "top1_percent")),
        lambda look: number(look("corrupt-1", "innocent_failed"), 0),
        lambda look: number(look("corrupt-1", "n"), 0),
    ]

    rows = _rows(record, precision, cells)
    for row in rows:
        row.append(f"{record['installed_bytes'][row[0]] / _MB:.0f}")
    return table(header, rows)


def _settings(record: Record) -> str:
    lines = ["The best of each server's settings was measured; requests/s of all:\n"]
    for precision, servers in record["settings"].items():
        for server, tried in servers.items():
            best = record["chosen"][precision].get(server)
            facts = (
                f"**{name}** {rate:.1f}" if name == best else f"{name} {rate:.1f}"
                for name, rate in tried.items()
            )
            lines.append(f"- {precision}, {server}: {'; '.join(facts)}")
    return "\n".join(lines) + "\n"


def _versions(record: Record) -> str:
    lines = []
    for server, packages in record["versions"].items():
        names = (*_PACKAGES, "convserve", "onnxruntime", "pillow", "numpy")
        facts = (f"{name} {packages[name]}" for name in names if name in packages)
        lines.append(f"- {server}: {', '.join(facts)}")
    return "\n".join(lines) + "\n\nAll packages are in `results.json`.\n"

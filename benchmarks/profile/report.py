"""The Markdown page of a profile: medians over the rounds, lowest and highest in parentheses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from benchmarks.measures import Spread, spread
from benchmarks.profile.proc import LANES, LOG, LOOP, ROLES
from benchmarks.report import machine_line, number, table

Record = dict[str, Any]
Rows = list[dict[str, Any]]

_N_CALLS: Final = 5  # system calls that are named
# What follows the stages of a thread.
_BELOW: Final = {"event loop": "log line, on the writer's thread", "lane": "run, a picture of 8"}


def markdown(record: Record) -> str:
    """Returns the whole page of a record; parts that were not measured are left out."""
    parts = [f"# Profile of {record['started_at']}\n", _conditions(record)]
    for precision in record["options"]["precisions"]:
        found = record["precisions"].get(precision, {})
        if threads := found.get("threads"):
            parts.append(f"## {precision}: by thread\n\n{by_thread(threads, found['bare'])}")
            parts.append(f"## {precision}: context switches a request\n\n{switches(threads)}")
        if found.get("calls"):
            parts.append(
                f"## {precision}: system calls of the event loop\n\n{calls(found['calls'])}"
            )
        for name, stages in found.get("stages", {}).items():
            parts.append(f"## {precision}: by stage, {name}\n\n{by_stage(stages)}")
        if front := found.get("front"):
            parts.append(f"## {precision}: the front alone\n\n{fronts(front, found['bare'])}")

    if record["notes"]:
        parts.append(
            "## Not measured\n\n" + "\n".join(f"- {one}" for one in record["notes"]) + "\n"
        )
    return "\n".join(parts)


def by_thread(rows: Rows, bare: Rows) -> str:
    header = ["server", "clients", "requests/s", "p50 ms", "p99 ms", "CPU ms/request"]
    header += [f"{role}, us" for role in ROLES]
    lines = []
    for server, clients, found in _groups(rows):
        cells = [
            number(_spread(found, "per_s")),
            number(_spread(found, "latency_p50_ms")),
            number(_spread(found, "latency_p99_ms")),
            number(_spread(found, "cpu_ms_per_request"), 2),
        ]
        cells += [number(_role(found, role, "cpu_us"), 0) for role in ROLES]
        lines.append([server, str(clients), *cells])

    if bare:
        rate, cpu = number(_spread(bare, "per_s")), number(_spread(bare, "cpu_ms_per_image"), 2)
        lines.append(["bare loop", "-", rate, "-", "-", cpu, *["-"] * len(ROLES)])
    return table(header, lines)


def switches(rows: Rows) -> str:
    """Renders the context switches, voluntary / involuntary."""
    roles = (LOOP, LANES, LOG)
    lines = []
    for server, clients, found in _groups(rows):
        cells = [
            " / ".join(number(_role(found, role, kind), 2) for kind in ("voluntary", "involuntary"))
            for role in roles
        ]
        lines.append([server, str(clients), *cells])
    header = ["server", "clients", *(f"{role}: voluntary / involuntary" for role in roles)]
    return table(header, lines)


def calls(rows: Rows) -> str:
    lines = []
    for server, clients, found in _groups(rows):
        names = {name for one in found for name in one["calls"]}
        a_request = {
            name: sum(one["calls"].get(name, 0.0) for one in found) / len(found) for name in names
        }
        most = sorted(a_request.items(), key=lambda item: -item[1])[:_N_CALLS]
        facts = ", ".join(f"{name} {value:.2f}" for name, value in most)
        lines.append([server, str(clients), f"{sum(a_request.values()):.2f}", facts])
    return table(["server", "clients", "calls a request", "most often"], lines)


def by_stage(rounds: Rows) -> str:
    """Renders the stages; each round has the median of every stage in us."""
    lines = []
    for thread, below in _BELOW.items():
        stages = list(rounds[0][thread])
        names = [*stages, f"rest, {thread}", f"whole, {thread}", below]
        for name in names:
            found = spread([one["us"][name] for one in rounds])
            lines.append([name, thread if name in stages else "", number(found, 1)])
    return table(["stage", "thread", "CPU us"], lines)


def fronts(rows: Rows, bare: Rows) -> str:
    lane_ms = spread([one["cpu_ms_per_image"] for one in bare])
    header = ["front", "clients", "requests/s", "core busy, %", "p99 ms", "event loop, us"]
    header += ["all threads, us", "cores of lanes that it feeds"]
    lines = []
    for server, clients, found in _groups(rows):
        front_ms = _spread(found, "cpu_ms_per_request")
        limit = f"{lane_ms.median / front_ms.median:.1f}" if lane_ms and front_ms else "-"
        busy = spread([one["per_s"] * one["cpu_ms_per_request"] / 10 for one in found])
        cells = [
            number(_spread(found, "per_s"), 0),
            number(busy, 0),
            number(_spread(found, "latency_p99_ms")),
            number(_role(found, LOOP, "cpu_us"), 0),
            number(front_ms, 0, 1e3),
            limit,
        ]
        lines.append([server, str(clients), *cells])

    text = table(header, lines)
    if lane_ms:
        text += (
            f"\nA picture takes {number(lane_ms, 2)} ms of CPU time on a lane (the bare loop). Divided "
            "by the CPU time of the front, that is the number of cores whose lanes one front feeds.\n"
        )
    return text


def _conditions(record: Record) -> str:
    machine, options = record["machine"], record["options"]
    return (
        f"{machine_line(machine)}, load before {machine['load_before']:.2f}. Commit {record['commit']}"
        + (f", baseline {record['baseline']}" if record["baseline"] else "")
        + f". Rounds: {options['rounds']}, interleaved over all servers; {options['seconds']} s per "
        f"load; {options['n_photos']} photos in rotation; wrk on the same cores, except for the front "
        "alone. Numbers are medians over the rounds, lowest and highest in parentheses. "
        "Every us is CPU time.\n"
    )


def _groups(rows: Rows) -> Iterable[tuple[str, int, Rows]]:
    groups: dict[tuple[str, int], Rows] = {}
    for one in rows:
        groups.setdefault((one["server"], one["clients"]), []).append(one)
    servers = list(dict.fromkeys(server for server, _ in groups))
    for server, clients in sorted(groups, key=lambda key: (key[1], servers.index(key[0]))):
        yield server, clients, groups[server, clients]


def _spread(rows: Rows, key: str) -> Spread | None:
    return spread([one.get(key) for one in rows])


def _role(rows: Rows, role: str, key: str) -> Spread | None:
    return spread([one["roles"][role][key] for one in rows])

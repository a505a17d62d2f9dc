"""A whole measurement: chooses settings, runs interleaved rounds, writes the record."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks import contenders, machine, report, venvs
from benchmarks.answers import WrongAnswers, reference
from benchmarks.contenders import Contender, Setting
from benchmarks.photos import ROOT, read_photos
from benchmarks.scenarios import Course, visit
from benchmarks.session import NotStarted, Work, running

_CHOICE_CLIENTS: Final = (8, 32)  # enough to load all cores; four loads would take twice as long
# What one server may do wrong without ending the run for the others.
_FAILURES: Final = (NotStarted, WrongAnswers, subprocess.SubprocessError, TimeoutError, ValueError)
US: Final = "convserve"


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure."""

    photos: Path  # a folder of JPEG files
    graphs: Mapping[str, Path]  # by precision; the first has all scenarios, others the closed loops
    servers: tuple[str, ...]
    rounds: int
    seconds: float  # of each load
    deadline_ms: int  # answers within it are goodput
    max_photos: int
    closed_only: bool = False  # leaves out the open loops and the broken pictures


def smoke(options: Options) -> int:
    """Starts every server in every setting and compares the answers; returns the exit status."""
    failed = 0
    work = _work(options, next(iter(options.graphs.values())))

    # One failure does not stop the others: the point is to see all of them.
    for contender in map(contenders.find, options.servers):
        for setting in contender.settings:
            try:
                with running(contender, setting, work) as session:
                    agreed = session.verify()
                    memory_mb = session.server.memory_bytes() / 1e6
                print(
                    f"ok      {contender.name}, {setting.name}: start {session.cold_start_s:.2f} s, "
                    f"{memory_mb:.0f} MB, top-1 as the reference {agreed.top1_percent:.1f} %",
                    flush=True,
                )
            except _FAILURES as error:
                failed += 1
                print(f"FAILED  {contender.name}, {setting.name}: {error}", flush=True)

    return 1 if failed else 0


def run(options: Options, folder: Path, started_at: str) -> int:
    """Measures everything and writes the record; returns the exit status."""
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "started_at": started_at,
        "machine": machine.describe(),
        "options": {
            "rounds": options.rounds,
            "seconds": options.seconds,
            "deadline_ms": options.deadline_ms,
            "precisions": list(options.graphs),
        },
        "versions": {name: venvs.versions(_home(name)) for name in options.servers},
        "installed_bytes": {name: venvs.installed_bytes(_home(name)) for name in options.servers},
        "bare": {},
        "settings": {},
        "measurements": [],
        "failures": [],
    }

    for precision, graph in options.graphs.items():
        work = _work(options, graph)
        record["options"]["n_photos"] = len(work.photos)
        chosen = _choose(options, work, precision, record)
        _rounds(options, work, precision, chosen, record, folder)

    _write(record, folder)
    render(folder)
    return 1 if record["failures"] else 0


def render(folder: Path) -> None:
    record = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    (folder / "README.md").write_text(report.markdown(record), encoding="utf-8")

    # Imported here, because nothing else needs matplotlib.
    from benchmarks import plots

    plots.write(record, folder)
    print(f"written to {folder}")


@dataclass(frozen=True, slots=True)
class _Chosen:
    contender: Contender
    setting: Setting
    capacity_per_s: float


def _choose(options: Options, work: Work, precision: str, record: dict[str, Any]) -> list[_Chosen]:
    """Measures each setting briefly and returns each server with its best one."""
    found = []
    # Every setting's rate goes into the record, so that a reader can check the choice.
    tried: dict[str, Any] = record["settings"].setdefault(precision, {})

    for contender in map(contenders.find, options.servers):
        best: _Chosen | None = None
        for setting in contender.settings:
            try:
                with running(contender, setting, work) as session:
                    session.verify()
                    rates = [
                        session.closed_loop(clients, options.seconds)["per_s"]
                        for clients in _CHOICE_CLIENTS
                    ]
            except _FAILURES as error:
                _fail(record, f"{precision} {contender.name}, {setting.name}", error)
                continue

            _say(f"{precision} {contender.name}, {setting.name}: {max(rates):.1f}/s")
            tried.setdefault(contender.name, {})[setting.name] = max(rates)
            if best is None or max(rates) > best.capacity_per_s:
                best = _Chosen(contender, setting, max(rates))

        if best is not None:
            found.append(best)

    record.setdefault("chosen", {})[precision] = {
        one.contender.name: one.setting.name for one in found
    }
    return found


def _rounds(
    options: Options,
    work: Work,
    precision: str,
    chosen: list[_Chosen],
    record: dict[str, Any],
    folder: Path,
) -> None:
    # The open loops take most of the time, so only the first precision has them.
    whole = precision == next(iter(options.graphs)) and not options.closed_only
    others = [one.capacity_per_s for one in chosen if not one.contender.ours]

    for number in range(1, options.rounds + 1):
        # In every round as well, because a machine's speed changes over hours.
        bare = _bare(work.graph, options)
        record["bare"].setdefault(precision, []).append(bare)

        for one in chosen:
            name = one.contender.name
            course = Course(
                seconds=options.seconds,
                capacity_per_s=one.capacity_per_s if whole else None,
                best_other_per_s=max(others) if others and name == US else None,
                deadline_s=options.deadline_ms / 1e3,
                round=number,
                idle=whole and number == 1,
            )

            labels = {"precision": precision, "server": name, "round": number}
            try:
                with running(one.contender, one.setting, work) as session:
                    for scenario, numbers in visit(session, course):
                        record["measurements"].append(labels | {"scenario": scenario} | numbers)
            except _FAILURES as error:
                _fail(record, f"{precision} {name}, round {number}", error)

            # Written after each server, so that an interrupted run keeps what it has.
            _say(f"{precision} {name}, round {number} of {options.rounds}: done")
            _write(record, folder)


def _home(name: str) -> str:
    return contenders.find(name).home or name


def _work(options: Options, graph: Path) -> Work:
    photos = read_photos(options.photos)[: options.max_photos]
    expected = reference(photos, graph, graph.with_name("manifest.json"))
    return Work(graph, photos, expected, options.deadline_ms)


def _bare(graph: Path, options: Options) -> Any:
    # A process of its own: its threads and sessions must not burden the servers that follow.
    command = [sys.executable, "-m", "benchmarks.bare", "--graph", str(graph)]
    command += ["--photos", str(options.photos), "--seconds", str(options.seconds)]
    output = subprocess.run(  # noqa: S603 - our own module
        command, cwd=ROOT, check=True, capture_output=True, timeout=300
    ).stdout
    return json.loads(output)


def _fail(record: dict[str, Any], what: str, error: Exception) -> None:
    record["failures"].append(f"{what}: {type(error).__name__}: {error}"[:500])
    _say(f"FAILED {what}: {error}")


def _write(record: dict[str, Any], folder: Path) -> None:
    text = json.dumps(record, indent=1) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")


def _say(text: str) -> None:
    print(text, flush=True)

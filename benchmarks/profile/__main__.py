"""Measures what a request costs, by thread and by stage, and writes a record.

    python -m benchmarks.profile [--part threads calls stages front] [--rounds N] [--seconds S]

`threads` compares convserve with the minimal front and the bare loop under load, `calls` counts the
system calls of their event loops, `stages` calls each stage of a request alone, and `front` replaces
the lanes by ones that only wait.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks import machine
from benchmarks.photos import ROOT, default_folder, default_graph
from benchmarks.processes import adopt_orphans
from benchmarks.profile import front, proc, report, threads
from benchmarks.profile.photos import small_photos
from benchmarks.profile.servers import Server, servers

_RECORDS: Final = ROOT / "benchmarks" / "records"
_PARTS: Final = ("threads", "calls", "stages", "front")

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Profile:
    """What to measure, with one graph."""

    options: argparse.Namespace
    graph: Path
    photos: list[bytes]
    servers: list[Server]

    def round(self, found: Record, number: int) -> Iterator[str]:
        """Adds one round of every part to `found`; yields the name of each step when it is done."""
        parts, seconds = self.options.part, self.options.seconds
        if {"threads", "front"} & set(parts):
            found["bare"].append(threads.bare_loop(self.graph, self.photos, seconds))
            yield "bare loop"

        for part, measure in (
            ("threads", threads.measure),
            ("calls", threads.count_calls),
            ("front", front.measure),
        ):
            if part not in parts:
                continue
            # Counts do not vary as times do, so one round is enough.
            if part == "calls" and (number > 1 or not proc.has_strace()):
                continue
            clients = [n for n in self.options.clients if part != "front" or n > 1]
            for server in self.servers:
                if part == "front" and not server.threads_only:
                    continue
                for numbers in measure(server, self.graph, self.photos, clients, seconds):
                    found[part].append({"server": server.name, "round": number, **numbers})
                yield f"{part}, {server.name}"

        if "stages" in parts:
            yield from self._stages(found)

    def _stages(self, found: Record) -> Iterator[str]:
        checkouts = {"convserve": ROOT, "baseline": self.options.baseline}
        for name, checkout in checkouts.items():
            # A checkout's own benchmark, because it calls functions that others may not have.
            if checkout and (checkout / "benchmarks" / "profile" / "stages.py").exists():
                numbers = self._stages_of(checkout)
                found["stages"].setdefault(name, []).append(numbers)
                yield f"stages, {name}"

    def _stages_of(self, checkout: Path) -> Any:
        command = [sys.executable, "-m", "benchmarks.profile.stages"]
        command += ["--graph", str(self.graph), "--photos", str(self.options.photos.resolve())]
        command += ["--max-photos", str(len(self.photos))]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        output = subprocess.run(  # noqa: S603 - our own module
            command, cwd=checkout, env=environment, check=True, stdout=subprocess.PIPE, timeout=600
        ).stdout
        return json.loads(output)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile")
    parser.add_argument("--part", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument("--photos", type=Path, default=default_folder(), help="a folder of JPEGs")
    parser.add_argument("--max-photos", type=int, default=200)
    parser.add_argument(
        "--int8", type=Path, default=default_graph(), help="<name>/<version>/model.onnx"
    )
    parser.add_argument("--fp32", type=Path, help="the same in float; left out if not given")
    parser.add_argument("--baseline", type=Path, help="another checkout, to be compared with")
    parser.add_argument("--servers", nargs="+", help="some of the servers; default: all")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=6, help="of each load")
    parser.add_argument("--name", default="profile", help="of the record")
    parser.add_argument("--records", type=Path, default=_RECORDS, help="where records are written")
    return parser


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that servers end
    adopt_orphans()

    if options.baseline is not None:
        options.baseline = options.baseline.resolve()
    chosen = servers(options.baseline)
    if options.servers:
        names = [server.name for server in chosen]
        if unknown := set(options.servers) - set(names):
            parser.error(f"--servers: {', '.join(sorted(unknown))}; known are {', '.join(names)}")
        chosen = [server for server in chosen if server.name in options.servers]

    graphs = {"int8": options.int8.resolve()}
    if options.fp32 is not None:
        graphs["fp32"] = options.fp32.resolve()
    photos = small_photos(options.photos)[: options.max_photos]

    now = datetime.now(UTC)
    folder = options.records / f"{now:%Y-%m-%d}-{options.name}"
    folder.mkdir(parents=True, exist_ok=True)
    record: Record = {
        "started_at": f"{now:%Y-%m-%dT%H:%MZ}",
        "commit": _commit(ROOT),
        "baseline": _commit(options.baseline) if options.baseline else None,
        "machine": machine.describe(),
        "options": {
            "parts": options.part,
            "rounds": options.rounds,
            "seconds": options.seconds,
            "n_photos": len(photos),
            "precisions": list(graphs),
        },
        "precisions": {},
        "notes": _notes(options),
    }

    for number in range(1, options.rounds + 1):
        for precision, graph in graphs.items():
            empty: Record = {"threads": [], "calls": [], "stages": {}, "front": [], "bare": []}
            found = record["precisions"].setdefault(precision, empty)
            for step in Profile(options, graph, photos, chosen).round(found, number):
                print(f"{precision}, round {number} of {options.rounds}: {step}", flush=True)
                _write(record, folder)  # so that an interrupted run keeps what it has

    print(f"\n{report.markdown(record)}\nwritten to {folder}")
    return 0


def _notes(options: argparse.Namespace) -> list[str]:
    notes = []
    if "calls" in options.part and not proc.has_strace():
        notes.append("System calls: strace is not installed.")
    if options.baseline and "stages" in options.part:
        theirs = options.baseline / "benchmarks" / "profile" / "stages.py"
        if not theirs.exists():
            notes.append("Stages of the baseline: it has no `benchmarks/profile/stages.py`.")
    if "front" in options.part and len(os.sched_getaffinity(0)) < 2:
        options.part.remove("front")
        notes.append("The front alone: this takes two cores.")
    return notes


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return run.stdout.strip() or "unknown"


def _write(record: Record, folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(report.markdown(record), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

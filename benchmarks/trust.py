"""Compares `convserve loadtest` with wrk and hey on the same server.

    python -m benchmarks.trust closed rates stall cost ramp others --folder RECORD

Each part prints a table and writes its numbers to RECORD/PART.json. Needs Linux, wrk and hey. The
server runs on the first core, the senders on the second; `ramp` and `others` use all cores for both,
as on a machine of one's own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks import venvs
from benchmarks.answers import reference
from benchmarks.contenders import Setting, find
from benchmarks.measures import spread
from benchmarks.photos import ROOT, default_folder, default_graph, read_photos
from benchmarks.processes import on_core
from benchmarks.session import Session, Work, running, wrk_numbers
from convserve.loadtest.results import Result, read_result

_CLIENTS: Final = 8
_STALL_S: Final = 1.0
_STALL_EVERY_S: Final = 10.0
_SCRIPT: Final = Path(__file__).with_name("post.lua")
_OTHERS: Final = {"mosec": 1, "fastapi_tuned": 0, "litserve": 0}  # which of their settings


def closed(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Requests a second with 8 clients: wrk, then ours, in each round."""
    rows = []
    with _server("convserve", 0, pinned=True) as session:
        for number in range(rounds):
            theirs = _wrk(session, seconds)
            ours = _numbers(_loadtest(session, "--clients", _CLIENTS, "--duration", seconds))
            rows.append({"round": number + 1, "wrk": theirs, "convserve": ours})
            ratio = ours["per_s"] / theirs["per_s"]
            print(f"round {number + 1}: wrk {theirs['per_s']:.1f}/s, ours {ratio:.4f} of it")
    return rows


def rates(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """p50 and p99 at half and at 80% of wrk's rate: hey, ours with even and with random gaps."""
    rows = []
    with _server("convserve", 0, pinned=True) as session:
        most = _wrk(session, seconds)["per_s"]
        for share in (0.5, 0.8):
            for number in range(rounds):
                rate = most * share
                row = {"share": share, "round": number + 1, "rate": rate}
                row["hey"] = _hey(session, rate, seconds)
                for arrivals in ("even", "poisson"):
                    given = ("--rate", rate, "--arrivals", arrivals, "--duration", seconds)
                    row[arrivals] = _numbers(_loadtest(session, *given))
                rows.append(row)
                print(_line(row))
    return rows


def stall(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A server that stops for 1 s every 10 s: wrk, hey, and ours in an open and a closed loop."""
    rows = []
    with _server("convserve", 0, pinned=True) as session:
        most = _wrk(session, seconds)["per_s"]
        rate = most / 2
        for number in range(rounds):
            row: dict[str, Any] = {"round": number + 1, "rate": rate}
            tools: dict[str, Callable[[], dict[str, Any]]] = {
                "wrk": lambda: _wrk(session, 3 * _STALL_EVERY_S),
                "hey": lambda: _hey(session, rate, 3 * _STALL_EVERY_S),
                "closed": lambda: _numbers(
                    _loadtest(session, "--clients", _CLIENTS, "--duration", 3 * _STALL_EVERY_S)
                ),
                "open": lambda: _numbers(
                    _loadtest(session, "--rate", rate, "--duration", 3 * _STALL_EVERY_S)
                ),
            }
            for name, tool in tools.items():
                with _stalling(session):
                    row[name] = tool()
            rows.append(row)
            print(_line(row))
    return rows


def cost(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """CPU time a request of the sender, and its highest rate, against a server that only answers."""
    rows = []
    photos = read_photos(default_folder())
    small, usual = min(photos, key=len), sorted(photos, key=len)[len(photos) // 2]
    for name, photo in (("small", small), ("usual", usual)):
        with tempfile.TemporaryDirectory() as folder, _answering() as url:
            file = Path(folder, "photo.jpg")
            file.write_bytes(photo)
            for number in range(rounds):
                found = _command(url, [file], "--clients", 32, "--duration", seconds)
                numbers = _numbers(found) | {
                    "photo": name,
                    "bytes": len(photo),
                    "round": number + 1,
                }
                rows.append(numbers)
                print(_line(numbers))
    return rows


def ramp(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """The capacity, several times in a row."""
    with _server("convserve", 0) as session:
        found = [_capacity(session, seconds) for _ in range(rounds)]
    spread_of = spread([one["capacity_per_s"] for one in found])
    print(spread_of)
    return found


def others(rounds: int, seconds: float) -> list[dict[str, Any]]:
    """The capacity of other servers."""
    rows = []
    for name, number in _OTHERS.items():
        with _server(name, number) as session:
            setting = find(name).settings[number]
            rows += [{"server": name} | _capacity(session, seconds, setting) for _ in range(rounds)]
            print(_line(rows[-1]))
    return rows


PARTS: Final = {
    "closed": (closed, 5, 10.0),
    "rates": (rates, 3, 20.0),
    "stall": (stall, 2, 10.0),
    "cost": (cost, 3, 5.0),
    "ramp": (ramp, 5, 10.0),
    "others": (others, 1, 10.0),
}


@contextmanager
def _server(name: str, number: int, *, pinned: bool = False) -> Iterator[Session]:
    contender = find(name)
    venvs.install(name, ROOT if contender.ours else None)
    graph = default_graph()
    photos = read_photos(default_folder())[:64]
    work = Work(graph, photos, reference(photos, graph, graph.with_name("manifest.json")), 1000)
    with running(contender, contender.settings[number], work) as session:
        for index, photo in enumerate(photos):
            (session.folder / f"photo-{index:02}.jpg").write_bytes(photo)
        session.verify()
        if not pinned:
            yield session
            return
        _pin(session, {0})
        with on_core(1):
            yield session


def _pin(session: Session, cores: set[int]) -> None:
    for stat in session.server.tree():
        for task in Path(f"/proc/{stat.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), cores)


@contextmanager
def _stalling(session: Session) -> Iterator[None]:
    ended = threading.Event()
    pids = [stat.pid for stat in session.server.tree() if stat.pid != os.getpid()]

    def run() -> None:
        while not ended.wait(_STALL_EVERY_S - _STALL_S):
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            ended.wait(_STALL_S)
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def _answering() -> Iterator[str]:
    """The minimal front with lanes that take no time, which answers about 9,000 requests a second."""
    port = 18473
    command = [sys.executable, "-m", "benchmarks.profile.minimal", "--graph", str(default_graph())]
    command += ["--port", str(port), "--idle-ms", "0.001"]
    server = subprocess.Popen(command, cwd=ROOT)  # noqa: S603 - our own module
    os.sched_setaffinity(server.pid, {0})
    try:
        with on_core(1):
            yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _wrk(session: Session, seconds: float) -> dict[str, Any]:
    url = f"http://{session.plan.target.authority}/"
    command = ["wrk", "-t1", f"-c{_CLIENTS}", f"-d{seconds:g}s", "--timeout", "30s", "-s"]
    output = subprocess.run(  # noqa: S603 - our own command
        [*command, str(_SCRIPT), url, "--", str(session.listing)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return wrk_numbers(output, 0.0)


def _hey(session: Session, rate_per_s: float, seconds: float) -> dict[str, Any]:
    # hey gives each of its workers a rate; its latencies count from when a worker sent.
    n = 50
    command = [
        "hey",
        "-z",
        f"{seconds:g}s",
        "-c",
        str(n),
        "-q",
        f"{rate_per_s / n:.3f}",
        "-m",
        "POST",
    ]
    url = f"http://{session.plan.target.authority}/v1/classify"
    output = subprocess.run(  # noqa: S603 - our own command
        [*command, "-T", "image/jpeg", "-D", str(session.folder / "photo-00.jpg"), url],
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    def read(pattern: str) -> float:
        found = re.search(pattern, output)
        return float(found[1]) if found else float("nan")

    return {
        "per_s": read(r"Requests/sec:\s+([\d.]+)"),
        "p50_ms": 1e3 * read(r"50%+ in ([\d.]+)"),
        "p99_ms": 1e3 * read(r"99%+ in ([\d.]+)"),
        "max_ms": 1e3 * read(r"Slowest:\s+([\d.]+)"),
    }


def _loadtest(session: Session, *given: object, setting: Setting | None = None) -> Result:
    url = f"http://{session.plan.target.authority}"
    photos = sorted(session.folder.glob("photo-*.jpg"))
    if setting is not None:
        given = (*given, "--path", setting.path, "--body", setting.body)
    return _command(url, photos, *given)


def _command(url: str, photos: Sequence[Path], *given: object) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "convserve", "loadtest", url, *map(str, photos)]
        command += [*map(str, given), "--warmup", "1s", "--output", folder]
        if "--duration" in command:
            at = command.index("--duration") + 1
            command[at] += "s"
        subprocess.run(command, cwd=ROOT, check=False, capture_output=True)  # noqa: S603
        return read_result(Path(folder))


def _capacity(session: Session, seconds: float, setting: Setting | None = None) -> dict[str, Any]:
    found = _loadtest(session, "--duration", seconds, setting=setting)
    capacity = found.capacity
    row = {
        "capacity_per_s": capacity.rate_per_s if capacity else None,
        "missed_from_per_s": capacity.missed_from_per_s if capacity else None,
        "trials": len(found.trials),
        "invalid_because": found.invalid_because,
    }
    print(_line(row), flush=True)
    return row


def _numbers(found: Result) -> dict[str, Any]:
    trial = found.summary
    if trial is None:
        raise RuntimeError(f"nothing was measured: {found.invalid_because}")
    return {
        "per_s": trial.goodput_per_s,
        "p50_ms": trial.latency.p50_ms,
        "p99_ms": trial.latency.p99_ms,
        "max_ms": trial.latency.max_ms,
        "lag_p99_ms": trial.sender.lag_p99_ms,
        "sender_us": trial.sender.cpu_us_per_request,
        "core": trial.sender.busiest_core,
        "valid": found.valid,
    }


def _line(row: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "(" + _line(value) + ")"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name} {text(value)}" for name, value in row.items())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust", description=__doc__)
    parser.add_argument("parts", nargs="+", choices=list(PARTS))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        measure, rounds, seconds = PARTS[part]
        print(f"# {part}", flush=True)
        rows = measure(arguments.rounds or rounds, seconds)
        text = json.dumps(rows, indent=1) + "\n"
        (arguments.folder / f"{part}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Ends a real service with a signal at random moments and counts how it ended.

    python benchmarks/reliability/signals.py --signals 100 --kinds threads workers

Each round starts `convserve serve` and sends SIGTERM or SIGINT within `--within-s` seconds: while
the interpreter starts, while models load and are verified, or while it serves. Four rounds of five
have closed-loop clients. Once the service is up, every second round keeps taking the larger model
out of the repository and putting it back, so that the service is always adopting. Every fifth round
sends a second signal shortly after the first.

The promise: once the service handles its signals, its exit status is 0, it writes nothing to
standard error, and no child process is left a second later. Prints tables and exits with 1 if that
was broken.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 60.0
KINDS: Final = {"threads": 0, "workers": 2}  # kinds of lane, and their number of worker processes
STAGES: Final = ("before the signals are taken over", "loading", "serving")
OUTLIVED_S: Final = 1.0  # for a child to notice that its parent has gone
RETRY_S: Final = 0.02


@dataclass(frozen=True)
class Round:
    """One signal and how the service ended."""

    stage: str  # one of `STAGES`, at the signal
    number: signal.Signals
    code: int | None  # exit status, negative if a signal ended the process; None if it did not end
    took_s: float  # from the last signal to the end
    outlived_s: float  # how long a child process was still there afterwards
    stderr: str

    @property
    def kept(self) -> bool:
        if self.outlived_s > OUTLIVED_S:
            return False
        # Before it handles signals, the default action ends it, which is just as good.
        if self.stage == STAGES[0]:
            return self.code in (0, -self.number)
        return self.code == 0 and not self.stderr


def signals_taken(pid: int) -> bool:
    """Returns whether a process handles SIGTERM: with a handler, or with a thread that waits."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False

    # Blocked means that a thread takes it with `sigwait`; caught means a handler.
    masks = [line.split()[1] for line in text.splitlines() if line.startswith(("SigBlk", "SigCgt"))]
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)


def descendants(pid: int) -> set[tuple[int, str]]:
    """Returns the number and start time of every process below `pid`."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                # After the command in parentheses: state, parent, ..., start time in clock ticks.
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append((int(entry.name), fields[19]))

    found: set[tuple[int, str]] = set()
    waiting = [pid]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found.update(below)
        waiting += [number for number, _ in below]
    return found


def alive(process: tuple[int, str]) -> bool:
    # The start time tells a process from a later one with the same number.
    number, started = process
    try:
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in "ZX" and fields[19] == started


def ask_without_pause(port: int, picture: bytes, done: threading.Event) -> None:
    """A client that sends requests without pause, also while no server listens."""
    while not done.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        try:
            while not done.is_set():
                connection.request("POST", "/v1/classify", picture)
                connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            done.wait(RETRY_S)
        finally:
            connection.close()


def publish_without_pause(model: Path, log: Path, done: threading.Event) -> None:
    """Keeps taking a model out of the repository and putting it back, to have it loaded again."""
    aside = model.parent.parent / "aside"
    while not serving(log):
        if done.wait(0.05):
            return
    while not done.wait(0.3):
        model.rename(aside)
        done.wait(0.2)
        aside.rename(model)


@contextmanager
def beside(*calls: tuple[object, ...], done: threading.Event) -> Iterator[None]:
    """Runs each function with its arguments on a thread until the block ends."""
    threads = [threading.Thread(target=call[0], args=(*call[1:], done)) for call in calls]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()


def serving(log: Path) -> bool:
    return b'"serving"' in log.read_bytes()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def run_round(number: int, models: Path, options: argparse.Namespace, workers: int) -> Round:
    """Starts a service, sends the signal and returns how the service ended."""
    dice = random.Random(f"{options.seed} {number}")  # noqa: S311 - repeatable
    # A fixed port, because the clients ask before the service can say which one it has.
    port, log = free_port(), models.parent / "log"
    settings = {
        "models_dir": models,
        "port": port,
        "workers": workers,
        "drain_s": dice.choice((0, 0.3)),
        "grace_s": 10,
        "models_poll_s": 0.05,
    }

    picture = (ROOT / "examples" / "cat.jpg").read_bytes()
    clients = [(ask_without_pause, port, picture)] * (4 if number % 5 else 0)
    publisher = [(publish_without_pause, models / "efficientnet_lite0", log)] * (number % 2)

    with log.open("wb") as lines, beside(*clients, *publisher, done=threading.Event()):
        process = subprocess.Popen(
            [sys.executable, "-m", "convserve", "serve"],
            cwd=ROOT,
            env={**os.environ, **{f"CONVSERVE_{k.upper()}": str(v) for k, v in settings.items()}},
            stdout=lines,
            stderr=subprocess.PIPE,
            text=True,
        )

        time.sleep(dice.uniform(0, options.within_s))
        stage = STAGES[bool(signals_taken(process.pid))]
        if serving(log):
            stage = STAGES[2]
        # Listed before the signal, because an orphan's parent is another process.
        children = descendants(process.pid)

        chosen = dice.choice((signal.SIGTERM, signal.SIGINT))
        process.send_signal(chosen)
        if number % 5 == 2:
            time.sleep(dice.uniform(0, 0.2))
            children |= descendants(process.pid)
            process.send_signal(chosen)

        began_s = time.monotonic()
        code: int | None = None
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(PATIENCE_S)
        took_s = time.monotonic() - began_s

    if code is None:
        process.kill()
    ended_s = outlived_s = time.monotonic()
    while any(map(alive, children)) and outlived_s - ended_s < PATIENCE_S:
        time.sleep(0.01)
        outlived_s = time.monotonic()
    assert process.stderr is not None
    with process.stderr:
        return Round(stage, chosen, code, took_s, outlived_s - ended_s, process.stderr.read())


def run_signals(kind: str, options: argparse.Namespace) -> bool:
    """Runs the rounds of one kind of lane, prints a table, returns whether the promise was kept."""
    rounds = []
    for number in range(options.signals):
        with tempfile.TemporaryDirectory() as folder:
            models = Path(folder) / "models"
            for name in options.models:
                shutil.copytree(ROOT / "models" / name, models / name)
            rounds.append(run_round(number, models, options, KINDS[kind]))
        if not rounds[-1].kept:
            print(f"round {number}: {rounds[-1]}", file=sys.stderr, flush=True)

    print(f"\n### {kind}: {len(rounds)} signals\n")
    print("| at the signal | rounds | exit 0 | by the signal | otherwise | signal to end |")
    print("|---|---|---|---|---|---|")
    for stage in STAGES:
        some = [one for one in rounds if one.stage == stage]
        by_signal = sum(one.code == -one.number for one in some)
        others = Counter(str(one.code) for one in some if one.code not in (0, -one.number))
        listed = ", ".join(f"{count} x {code}" for code, count in others.items()) or "0"
        clean = sum(one.code == 0 for one in some)
        took = spread([one.took_s for one in some])
        print(f"| {stage} | {len(some)} | {clean} | {by_signal} | {listed} | {took} |")

    outlived = [one.outlived_s for one in rounds]
    print(f"\nchildren outlived it: {sum(one > 0 for one in outlived)} times, {spread(outlived)}")
    return all(one.kept for one in rounds)


def spread(values: list[float]) -> str:
    return f"median {statistics.median(values):.2f} s, max {max(values):.2f}" if values else "-"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signals", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--models", nargs="+", default=["digits", "efficientnet_lite0"])
    parser.add_argument("--within-s", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    kept = [run_signals(kind, options) for kind in options.kinds]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Publishes version after version of a model under a light load, and checks that nothing is left behind.

    nice python benchmarks/reliability/adoptions.py --adoptions 200 --workers 0 1

Each version is a copy of a committed one with the next number, and the one before is deleted once it is
replaced. Two clients post the same photograph meanwhile. Prints the memory (resident and proportional
set size), the threads and the descriptors of all processes after some of the adoptions. Exits with 1 if the
memory grew to more than 1.1 times that after the first adoption, threads or descriptors changed, or a
request failed.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Run as a script, this file has its own folder on the path, not the repository.
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.photos import ROOT
from benchmarks.processes import ServerTree, free_port
from benchmarks.reliability.mixed import post, wait_until_ready
from contract.repository.publishing import place_version
from contract.versions import Version, find_versions, read_version

_MB: Final = 1 << 20
_ROWS: Final = (1, 10, 50, 100, 200, 500, 1000)
_MAX_GROWTH: Final = 1.1
_PATIENCE_S: Final = 60.0
_N_SAMPLES: Final = 5


@dataclass(frozen=True, slots=True)
class Usage:
    """What a service uses at one moment: the sums over its processes."""

    processes: int
    rss_bytes: float
    pss_bytes: float
    threads: int
    descriptors: int


def usage_of(pids: Iterable[int]) -> Usage:
    rss = pss = threads = descriptors = processes = 0
    for pid in pids:
        proc = Path("/proc") / str(pid)
        with suppress(OSError):  # it has ended meanwhile
            rollup = dict(
                line.split(":", 1) for line in (proc / "smaps_rollup").read_text().splitlines()[1:]
            )
            threads += len(list((proc / "task").iterdir()))
            descriptors += len(list((proc / "fd").iterdir()))
            rss += 1024 * int(rollup["Rss"].split()[0])
            pss += 1024 * int(rollup["Pss"].split()[0])
            processes += 1
    return Usage(processes, rss, pss, threads, descriptors)


def settled(tree: ServerTree, settle_s: float) -> Usage:
    """Returns the usage a moment after an adoption: medians, because a request needs memory too."""
    time.sleep(settle_s)
    samples = []
    for _ in range(_N_SAMPLES):
        samples.append(usage_of(stat.pid for stat in tree.tree()))
        time.sleep(0.02)
    return Usage(
        *(
            statistics.median_low(getattr(one, name) for one in samples)
            for name in Usage.__dataclass_fields__
        )
    )


class LightLoad:
    """Clients that post one picture again and again, with a pause in between.

    Attributes:
        statuses: how many requests ended with each status; 0 without an answer.
    """

    def __init__(self, port: int, clients: int, pause_s: float) -> None:
        self.statuses: Counter[int] = Counter()
        self._port, self._pause_s = port, pause_s
        self._picture = (ROOT / "examples" / "cat.jpg").read_bytes()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._post) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _post(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_S)
        seen: Counter[int] = Counter()
        while not self._over.wait(self._pause_s):
            seen[post(connection, self._picture)] += 1
        connection.close()
        self.statuses.update(seen)  # the others are joined one by one, and this is one call


def publish(models: Path, source: Version, number: int) -> None:
    manifest = source.manifest.model_copy(update={"version": number})
    place_version(models, manifest, source.contents, lambda _: None)


def wait_for_adoption(log: Path, number: int, tree: ServerTree) -> None:
    end_s = time.monotonic() + _PATIENCE_S
    while log.read_bytes().count(b'"adopted"') < number:
        if not tree.running or time.monotonic() > end_s:
            raise TimeoutError(f"adoption {number} did not happen:\n{tree.log_tail()}")
        time.sleep(0.05)


def measure(asked: argparse.Namespace, workers: int) -> bool:
    """Runs one kind of lane, prints its table and returns whether everything was given back."""
    home = ROOT / "models"
    source = read_version(home, asked.model, max(find_versions(home)[asked.model]))

    with tempfile.TemporaryDirectory() as folder:
        models, log, port = Path(folder, "models"), Path(folder, "service.log"), free_port()
        publish(models, source, 1)
        settings = {"models_dir": models, "port": port, "workers": workers}
        settings |= {"models_poll_s": 0.2, "log_level": "info"}
        environment = {f"CONVSERVE_{name.upper()}": str(one) for name, one in settings.items()}

        command = [sys.executable, "-m", "convserve", "serve"]
        with ServerTree(command, os.environ | environment, asked.service, log) as tree:
            wait_until_ready(port)
            load = LightLoad(port, asked.clients, asked.pause_s)
            try:
                kept = _adopt_all(asked, models, source, log, tree)
            finally:
                load.stop()

    failed = load.statuses.total() - load.statuses[200]
    print(f"\nrequests: {load.statuses.total()}, failed: {failed}\n", flush=True)
    return kept and not failed


def _adopt_all(
    asked: argparse.Namespace, models: Path, source: Version, log: Path, tree: ServerTree
) -> bool:
    print(
        "| adoptions | RSS, MB | PSS, MB | PSS to the first | threads | descriptors | processes |"
    )
    print("|---|---|---|---|---|---|---|")
    first: Usage | None = None
    now = settled(tree, 1.0)
    _print_row(0, now, None)
    for done in range(1, asked.adoptions + 1):
        publish(models, source, done + 1)
        wait_for_adoption(log, done, tree)
        shutil.rmtree(models / asked.model / str(done))
        if asked.every or done in _ROWS or done == asked.adoptions:
            now = settled(tree, asked.settle_s)
            first = first or now
            _print_row(done, now, first)

    assert first is not None
    same = (now.threads, now.descriptors) == (first.threads, first.descriptors)
    return same and now.pss_bytes <= _MAX_GROWTH * first.pss_bytes


def _print_row(adoptions: int, now: Usage, first: Usage | None) -> None:
    ratio = f"{now.pss_bytes / first.pss_bytes:.2f}" if first else ""
    memory = f"{now.rss_bytes / _MB:.0f} | {now.pss_bytes / _MB:.0f}"
    counts = f"{now.threads} | {now.descriptors} | {now.processes}"
    print(f"| {adoptions} | {memory} | {ratio} | {counts} |", flush=True)


def measure_kinds(
    measure: Callable[[argparse.Namespace, int], bool], asked: argparse.Namespace
) -> int:
    """Measures each number of workers that was asked for; returns the exit status."""
    met = []
    for workers in asked.workers:
        print(f"### {f'{workers} workers' if workers else 'threads'}\n")
        met.append(measure(asked, workers))
    return 0 if all(met) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adoptions", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--pause-s", type=float, default=0.1, help="of a client after an answer")
    parser.add_argument("--settle-s", type=float, default=1.0, help="from an adoption to its row")
    parser.add_argument("--every", action="store_true", help="a row for each adoption")
    parser.add_argument("--service", type=Path, default=ROOT, help="checkout to measure")
    asked = parser.parse_args()

    return measure_kinds(measure, asked)


if __name__ == "__main__":
    sys.exit(main())

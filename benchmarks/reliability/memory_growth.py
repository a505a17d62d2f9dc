"""Measures the memory of a service during minutes of mixed load.

    nice python benchmarks/reliability/memory_growth.py --photos FOLDER --minutes 15 --workers 2

8 and 32 clients alternate every ten seconds and post photographs, other formats, pictures of 12 and 48
megapixels and broken files. Prints memory (PSS and RSS of all processes) and CPU time per request, with
the ratio to the memory after the start.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

# Run as a script, this file has its own folder on the path, not the repository.
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.photos import ROOT, default_folder
from benchmarks.processes import ServerTree, free_port
from benchmarks.reliability.mixed import Clients, mixed_pictures

_TURN_S = 10.0


def resident_mb(tree: ServerTree) -> tuple[float, float]:
    """Returns the PSS and the RSS of all processes."""
    pss_kb = rss_kb = 0
    for stat in tree.tree():
        rollup = Path(f"/proc/{stat.pid}/smaps_rollup").read_text(encoding="ascii")
        sizes = dict(line.split()[:2] for line in rollup.splitlines()[1:])
        pss_kb += int(sizes["Pss:"])
        rss_kb += int(sizes["Rss:"])
    return pss_kb / 1024, rss_kb / 1024


def wait_ready(port: int, limit_s: float = 60.0) -> None:
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.005)
    raise TimeoutError(f"no 200 from /readyz within {limit_s:g} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=default_folder())
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 5, 15])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--service", type=Path, default=ROOT, help="checkout to measure")
    asked = parser.parse_args()

    pictures = mixed_pictures(asked.photos, 2000)
    port = free_port()
    command = [sys.executable, "-m", "convserve", "serve", "--port", str(port)]
    command += ["--workers", str(asked.workers)]
    log = Path(tempfile.mkdtemp(), "service.log")
    with ServerTree(command, os.environ, asked.service, log) as tree:
        wait_ready(port)
        time.sleep(1)
        first = resident_mb(tree)
        began_s, began_cpu_s = time.monotonic(), tree.cpu_s()
        print("| minutes | PSS, MB | RSS, MB | PSS to start | RSS to start | CPU ms a request |")
        print("|---|---|---|---|---|---|")
        print(f"| 0 | {first[0]:.0f} | {first[1]:.0f} | 1.00 | 1.00 | |", flush=True)

        turn, statuses = 0, Counter[int]()
        for minutes in asked.minutes:
            while time.monotonic() < began_s + 60 * minutes:
                clients = Clients(port, pictures, (8, 32)[turn % 2], repeat=True)
                time.sleep(_TURN_S)
                clients.stop()
                statuses += clients.statuses
                turn += 1
            time.sleep(1)
            pss, rss = resident_mb(tree)
            cpu_ms = 1e3 * (tree.cpu_s() - began_cpu_s) / statuses.total()
            print(
                f"| {minutes:g} | {pss:.0f} | {rss:.0f} | {pss / first[0]:.2f} |"
                f" {rss / first[1]:.2f} | {cpu_ms:.3f} |",
                flush=True,
            )
    print(f"statuses: {dict(sorted(statuses.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

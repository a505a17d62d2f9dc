"""Measures the memory of a service during minutes of mixed load.

    nice python benchmarks/reliability/memory_growth.py --photos FOLDER --minutes 15 --workers 2

8 and 32 clients alternate every ten seconds and post photographs, other formats, pictures of 12 and 48
megapixels and broken files. Prints the memory of all processes (proportional set size), its ratio to
the memory after the start, and the CPU time per request.
"""

from __future__ import annotations

import argparse
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
from benchmarks.reliability.mixed import Clients, mixed_pictures, wait_until_ready

_TURN_S = 10.0
_MB = 1 << 20


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
        wait_until_ready(port)
        time.sleep(1)
        first_mb = tree.memory_bytes() / _MB
        began_s, began_cpu_s = time.monotonic(), tree.cpu_s()
        print("| minutes | memory, MB | ratio to the start | CPU ms a request |")
        print("|---|---|---|---|")
        print(f"| 0 | {first_mb:.0f} | 1.00 | |", flush=True)

        turn, statuses = 0, Counter[int]()
        for minutes in asked.minutes:
            while time.monotonic() < began_s + 60 * minutes:
                clients = Clients(port, pictures, (8, 32)[turn % 2], repeat=True)
                time.sleep(_TURN_S)
                clients.stop()
                statuses += clients.statuses
                turn += 1
            time.sleep(1)
            now_mb = tree.memory_bytes() / _MB
            cpu_ms = 1e3 * (tree.cpu_s() - began_cpu_s) / statuses.total()
            row = f"| {minutes:g} | {now_mb:.0f} | {now_mb / first_mb:.2f} | {cpu_ms:.3f} |"
            print(row, flush=True)
    print(f"statuses: {dict(sorted(statuses.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

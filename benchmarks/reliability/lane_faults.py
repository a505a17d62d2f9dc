"""Breaks lanes of a real service under load and counts the requests that this costs.

    python benchmarks/reliability/lane_faults.py --faults 50

Closed-loop clients post a photograph without pause. At random moments the next run fails in one of
three ways:

- dies: the lane's thread ends during the run, through an error that is no `Exception`;
- stuck: the run does not end until it is interrupted;
- deaf: the run takes eight seconds and ignores the interrupt, as native code can.

Requests have a deadline of one second here (30 s by default). A run counts as stuck one second
after the first deadline in its batch. Prints for each kind the failed requests, the time they took,
and the time until the lane and `/livez` were back. Exits with 1 if a request got no answer,
anything but the lane's current batch failed, or the answers were different afterwards.
"""

from __future__ import annotations

import argparse
import http.client
import os
import queue
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

# Run as a script, this file has its own folder on the path, not the repository.
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability.worker_faults import ROOT, Service, canary, spread, under_load

DEADLINE_S: Final = 1.0
MAX_BATCH_SIZE: Final = 8
DEAF_S: Final = 8.0  # well beyond the moment when a run counts as stuck
FAULT: Final = "LANE_FAULT"  # variable with the kind of fault; set in the service's process only
# The log line that ends each kind of fault.
SIGNS: Final = {
    "dies": "a lane is replaced",
    "stuck": "a batch is overdue and is interrupted",
    "deaf": "a lane is replaced",
}


def serve() -> None:
    """Runs the service with an engine that fails once for each SIGUSR1."""
    from convserve.__main__ import main
    from service.models.engine import OnnxEngine

    # The handler runs on the main thread and the engine on a lane's: a queue hands over the order.
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()
    signal.signal(signal.SIGUSR1, lambda *_: orders.put(os.environ[FAULT]))
    original = OnnxEngine.run

    def run(self: OnnxEngine, batch: Any, run: Any = None) -> Any:
        try:
            kind = orders.get_nowait()
        except queue.Empty:
            return original(self, batch, run)

        if kind == "dies":
            raise SystemExit("injected")
        if kind == "deaf":
            time.sleep(DEAF_S)  # ignores `run.interrupted`
            return original(self, batch, run)

        while not run.interrupted:
            time.sleep(0.01)
        raise RuntimeError("injected")

    OnnxEngine.run = run  # type: ignore[method-assign]
    main()


def is_live(service: Service) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def inject(service: Service, kind: str, dice: random.Random) -> tuple[float, float, float]:
    """Causes one fault; returns when it was, when the lane was back and when `/livez` was 200."""
    time.sleep(dice.uniform(0.1, 0.6))

    at_s = time.monotonic()
    service.process.send_signal(signal.SIGUSR1)
    back_s, _ = service.wait_for(SIGNS[kind], at_s)
    while not is_live(service):
        time.sleep(0.02)
    return at_s, back_s, time.monotonic()


def run_faults(kind: str, count: int, n_clients: int, seed: int) -> bool:
    """Causes one kind of fault, prints its cost and returns whether the promises were kept."""
    settings = {"request_timeout_s": DEADLINE_S, "models_poll_s": 0}
    service = Service(settings, (__file__,), {FAULT: kind}).start()
    picture = (ROOT / "examples" / "cat.jpg").read_bytes()
    expected = canary(service, picture)

    with under_load(service, picture, n_clients) as asked:
        time.sleep(1)
        before = service.footprint()
        dice = random.Random(seed)  # noqa: S311 - repeatable
        faults = [inject(service, kind, dice) for _ in range(count)]
        time.sleep(1)
        after = service.footprint()

    same = canary(service, picture) == expected
    service.process.send_signal(signal.SIGINT)
    exit_status = service.process.wait(60)

    failed = [one for one in asked if one.status != 200]
    kinds = Counter(f"{one.status} {one.code}" for one in failed)
    print(f"\n### {kind}: {count} faults, {n_clients} clients\n")
    print("| | |\n|---|---|")
    print(f"| requests | {len(asked)} |")
    print(f"| failed | {len(failed)} ({dict(kinds)}) |")
    print(f"| time that failed requests took | {spread([one.took_s for one in failed])} |")
    print(f"| fault to lane back | {spread([back - at for at, back, _ in faults])} |")
    print(f"| fault to `/livez` 200 | {spread([live - at for at, _, live in faults])} |")
    print(
        "| time that good requests took |"
        f" {spread([one.took_s for one in asked if one.status == 200])} |"
    )
    print(f"| descriptors, threads, resident kB before | {before} |")
    print(f"| after | {after} |")
    print(f"| same answer after as before, bit for bit | {same} |")
    print(f"| exit status | {exit_status} |", flush=True)

    # Each fault may fail the batch that was running, with one of these codes, and nothing else.
    only_ours = set(kinds) <= {"500 internal_error", "504 deadline_exceeded"}
    return same and only_ours and len(failed) <= count * MAX_BATCH_SIZE and exit_status == 0


def main() -> int:
    # The service is this same file, started with the kind of fault in its environment.
    if FAULT in os.environ:
        serve()
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=50, help="of each kind; a tenth of deaf ones")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()

    counts = {"dies": asked.faults, "stuck": asked.faults, "deaf": max(1, asked.faults // 10)}
    kept = [run_faults(kind, count, asked.clients, asked.seed) for kind, count in counts.items()]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())

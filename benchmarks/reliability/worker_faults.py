"""Kills and stops workers of a real service under load and counts the requests that this costs.

    python benchmarks/reliability/worker_faults.py --kills 100 --stops 50 --rounds 3

Closed-loop clients post a photograph without pause. At random moments a worker gets SIGKILL and, in
a second part with a deadline of one second, SIGSTOP. The next fault comes when the worker has been
replaced. Prints the failed requests, the time they took, and the time until the replacement was
ready. Compares the front's descriptors, threads and memory before and after, and the photograph's
probabilities bit for bit. `--rounds` alternates between a service without workers and one with
them, and compares requests/s and CPU time per request. Exits with 1 if a request failed in another
way, a descriptor leaked, the answer changed or the service did not end cleanly.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60
DEADLINE_S = 1.0


@dataclass(frozen=True)
class Asked:
    """One request of a client."""

    ended_s: float
    took_s: float
    status: int  # 0 without an answer
    code: str  # of the error, if it is one


@dataclass
class Fault:
    """One fault, and what the log says about it."""

    at_s: float
    noticed_s: float = 0.0
    ready_s: float = 0.0  # when the replacement was ready
    lost: int = 0  # pictures that the worker had
    reason: str = ""


@dataclass
class Service:
    """A service in a process of its own, and its log lines with their time of arrival."""

    settings: dict[str, Any]
    program: tuple[str, ...] = ("-m", "convserve")
    environment: dict[str, str] = field(default_factory=dict)
    lines: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    port: int = 0

    def start(self) -> Service:
        variables = {f"CONVSERVE_{k.upper()}": str(v) for k, v in self.settings.items()}
        self.process = subprocess.Popen(  # noqa: S603 - commands of our own
            [sys.executable, *self.program, "serve", "--port", "0"],
            cwd=ROOT,
            env={**os.environ, **variables, **self.environment},
            stdout=subprocess.PIPE,
            text=True,
        )

        # Read all the time: a full pipe would block the service.
        threading.Thread(target=self._read, daemon=True).start()
        _, line = self.wait_for("serving", 0.0)
        self.port = int(line["url"].rpartition(":")[2])
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            if '"message": "request"' not in text:  # thousands, and nothing waits for them
                self.lines.append((time.monotonic(), json.loads(text)))

    def wait_for(self, message: str, since_s: float) -> tuple[float, dict[str, Any]]:
        """Returns the arrival and content of the first line with a message since then."""
        until_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < until_s:
            for at_s, line in list(self.lines):
                if at_s > since_s and line["message"] == message:
                    return at_s, line
            time.sleep(0.005)
        raise SystemExit(f"the log has no {message!r} within {PATIENCE_S} s")

    def workers(self) -> list[int]:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [int(one) for one in children.split()]

    def footprint(self) -> tuple[int, int, int]:
        """Returns the number of descriptors and threads and the resident kB of the front."""
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(
            line.split(":", 1)
            for line in (proc / "status").read_text(encoding="utf-8").splitlines()
        )
        resident_kb = int(status["VmRSS"].split()[0])
        return len(list((proc / "fd").iterdir())), int(status["Threads"]), resident_kb

    def processes(self) -> list[Path]:
        return [Path(f"/proc/{pid}") for pid in (self.process.pid, *self.workers())]

    def cpu_s(self) -> float:
        # The fields after the command in parentheses; these two are user and system time.
        ticks = 0
        for folder in self.processes():
            fields = (folder / "stat").read_text(encoding="ascii").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_kb(self) -> int:
        # Memory that processes share counts for each of them.
        texts = [(one / "status").read_text(encoding="utf-8") for one in self.processes()]
        return sum(int(text.partition("VmRSS:")[2].split()[0]) for text in texts)

    def ask(self, connection: http.client.HTTPConnection, picture: bytes) -> tuple[int, Any]:
        """Returns the status and document of one request; status 0 without an answer."""
        try:
            connection.request("POST", "/v1/classify", picture)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            connection.close()
            return 0, {}

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)


def load(service: Service, picture: bytes, asked: list[Asked], done: threading.Event) -> None:
    connection = service.connect()
    while not done.is_set():
        began_s = time.monotonic()
        status, document = service.ask(connection, picture)
        ended_s = time.monotonic()
        asked.append(Asked(ended_s, ended_s - began_s, status, document.get("code", "")))


@contextmanager
def under_load(service: Service, picture: bytes, n_clients: int) -> Iterator[list[Asked]]:
    """Has clients ask without pause; the list it yields is complete once the block ends."""
    asked: list[Asked] = []
    done = threading.Event()
    clients = [
        threading.Thread(target=load, args=(service, picture, asked, done))
        for _ in range(n_clients)
    ]
    for client in clients:
        client.start()

    yield asked

    done.set()
    for client in clients:
        client.join()


def canary(service: Service, picture: bytes) -> Any:
    """Returns the predictions for the photograph."""
    connection = service.connect()
    status, document = service.ask(connection, picture)
    connection.close()
    assert status == 200
    return document["predictions"]


def inject(service: Service, number: signal.Signals, dice: random.Random) -> Fault:
    """Sends a random worker a signal at a random moment and waits for its replacement."""
    time.sleep(dice.uniform(0.1, 0.6))
    fault = Fault(time.monotonic())
    os.kill(dice.choice(service.workers()), number)
    fault.noticed_s, line = service.wait_for("worker lost", fault.at_s)
    fault.lost, fault.reason = line["pictures_lost"], line["reason"]
    fault.ready_s, _ = service.wait_for("worker ready", fault.at_s)
    return fault


def run_faults(name: str, number: signal.Signals, count: int, options: argparse.Namespace) -> bool:
    """Causes one kind of fault, prints its cost and returns whether the promises were kept."""
    settings = {"workers": options.workers, "request_timeout_s": 30, "models_poll_s": 0}
    # A stopped worker's batch is overdue one second after its first deadline; 30 s would be slow.
    if number is signal.SIGSTOP:
        settings["request_timeout_s"] = DEADLINE_S

    picture = (ROOT / "examples" / "cat.jpg").read_bytes()
    service = Service(settings).start()
    before_answer = canary(service, picture)

    with under_load(service, picture, options.clients) as asked:
        time.sleep(2)
        before = service.footprint()
        dice = random.Random(options.seed)  # noqa: S311 - repeatable
        began_s = time.monotonic()
        faults = [inject(service, number, dice) for _ in range(count)]
        lasted_s = time.monotonic() - began_s
        time.sleep(1)
        after = service.footprint()

    same = canary(service, picture) == before_answer
    service.process.send_signal(signal.SIGINT)
    exit_status = service.process.wait(PATIENCE_S)

    failed = [one for one in asked if one.status != 200]
    kinds = Counter(f"{one.status} {one.code}" for one in failed)
    answer_s = [one.ended_s - last_before(faults, one.ended_s) for one in failed]
    ready_s = [one.ready_s - one.at_s for one in faults]
    print(f"\n### {name}: {count}, {options.clients} clients, {options.workers} workers\n")
    print("| | |\n|---|---|")
    print(f"| requests | {len(asked)} in {lasted_s:.0f} s |")
    print(f"| failed | {len(failed)} ({dict(kinds)}) |")
    print(f"| lost according to the workers' record | {sum(one.lost for one in faults)} |")
    print(f"| most for one fault | {max(one.lost for one in faults)} |")
    print(f"| reasons | {dict(Counter(one.reason for one in faults))} |")
    print(f"| fault to answer, failed requests | {spread(answer_s)} |")
    print(f"| time that failed requests took | {spread([one.took_s for one in failed])} |")
    print(f"| fault to noticed | {spread([one.noticed_s - one.at_s for one in faults])} |")
    print(f"| fault to replacement ready | {spread(ready_s)} |")
    print(
        f"| time that good requests took | {spread([a.took_s for a in asked if a.status == 200])} |"
    )
    print(f"| descriptors, threads, resident kB before | {before} |")
    print(f"| after | {after} |")
    print(f"| same answer after as before, bit for bit | {same} |")
    print(f"| exit status | {exit_status} |", flush=True)

    expected = {"504 deadline_exceeded", "503 worker_lost"}
    return same and exit_status == 0 and set(kinds) <= expected and before[0] == after[0]


def cost(options: argparse.Namespace) -> None:
    """Prints the cost of workers when nothing fails."""
    picture = (ROOT / "examples" / "cat.jpg").read_bytes()

    found: dict[int, list[tuple[float, float, float]]] = {0: [], options.workers: []}
    for _ in range(options.rounds):
        for workers, rounds in found.items():
            service = Service({"workers": workers, "models_poll_s": 0}).start()
            with under_load(service, picture, options.clients) as asked:
                time.sleep(1)  # warm-up
                before, began, began_s = len(asked), service.cpu_s(), time.monotonic()
                time.sleep(5)
                count, spent_s = len(asked) - before, service.cpu_s() - began
                lasted_s = time.monotonic() - began_s
                resident_kb = service.resident_kb()
            service.process.send_signal(signal.SIGINT)
            service.process.wait(PATIENCE_S)
            rounds.append((count / lasted_s, spent_s / count * 1e3, resident_kb / 1e3))

    print(f"\n### Cost: {options.rounds} rounds in turn, {options.clients} clients\n")
    print("| workers | requests/s | CPU ms a request | resident MB, all processes |")
    print("|---|---|---|---|")
    for workers, rounds in found.items():
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        print("| {} | {:.1f} | {:.2f} | {:.0f} |".format(workers, *medians), flush=True)


def last_before(faults: list[Fault], moment_s: float) -> float:
    return max((one.at_s for one in faults if one.at_s <= moment_s), default=moment_s)


def spread(values: list[float]) -> str:
    """Returns median, 95th percentile and maximum in ms."""
    if not values:
        return "-"
    ordered = sorted(values)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    milliseconds = [value * 1e3 for value in (statistics.median(ordered), p95, ordered[-1])]
    return "median {:.0f} ms, p95 {:.0f} ms, max {:.0f} ms".format(*milliseconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stops", type=int, default=50)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()

    kept = True
    if options.kills:
        kept &= run_faults("SIGKILL", signal.SIGKILL, options.kills, options)
    if options.stops:
        kept &= run_faults("SIGSTOP", signal.SIGSTOP, options.stops, options)
    if options.rounds:
        cost(options)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())

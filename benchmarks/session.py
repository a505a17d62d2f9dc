"""One running server, and the load to put on it."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.answers import SERVERS, Agreement, agreement
from benchmarks.contenders import Contender, Setting, http_request
from benchmarks.measures import Row
from benchmarks.photos import corrupt
from benchmarks.processes import ServerTree, free_port
from benchmarks.venvs import bin_folder
from convserve.loadtest.sending.fleet import Fleet
from convserve.loadtest.sending.plan import Plan, Target, write_requests
from convserve.loadtest.sending.rows import RETRY_AFTER, WITH_BROKEN_PICTURE, read_rows
from convserve.loadtest.sending.sender import Sender

START_LIMIT_S: Final = 60.0
_N_CORRUPT: Final = 30  # six of each kind
_VERIFY_CLIENTS: Final = 4
_VERIFY_S: Final = 120.0
_COLLECT_S: Final = 0.5
_NO_TIMEOUT_S: Final = 3600.0  # a run ends its open requests itself
_SCRIPT: Final = Path(__file__).with_name("post.lua")


class NotStarted(Exception):
    """A server ended before its first answer, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Work:
    """The same task for every server."""

    graph: Path  # an ONNX file, with its manifest beside it
    photos: Sequence[bytes]
    expected: Sequence[Sequence[int]]  # the reference's top-5 of each photo
    deadline_ms: int  # for the servers that honour one


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a sender recorded of one plan."""

    rows: list[Row]  # in the order in which the requests ended
    bodies: dict[int, str]  # by the number of the photo, if the plan keeps them
    cpu_s: float  # of the sender itself
    wall_s: float


@dataclass(frozen=True, slots=True)
class Session:
    """A server that has answered its first request, and the requests for it."""

    server: ServerTree
    plan: Plan  # with all requests; how many and when is up to the scenario
    urgent: Plan  # the same with a deadline, where the server honours it
    listing: Path  # for wrk: one file with a whole request a line
    cold_start_s: float  # from the start of the process to the first answer with 200
    folder: Path
    expected: Sequence[Sequence[int]]

    def verify(self) -> Agreement:
        """Sends every photo once, which is also the warm-up; raises WrongAnswers."""
        plan = replace(
            self.plan,
            seconds=_VERIFY_S,
            timeout_s=_VERIFY_S,
            clients=_VERIFY_CLIENTS,
            n_requests=len(self.expected),
            keep_bodies=True,
        )
        return agreement(self.load(plan).bodies, self.expected)

    def load(self, plan: Plan) -> Outcome:
        # A process of its own: its CPU time is counted apart, and this one stays idle meanwhile.
        rows: list[Row] = []
        fleet = Fleet(plan, 1, self.folder)
        try:
            fleet.begin()
            while not fleet.ended:
                for batch in fleet.collect(_COLLECT_S):
                    rows += map(_row, batch)
        finally:
            fleet.kill()
        counts = fleet.counts[0]
        return Outcome(rows, fleet.bodies, counts.cpu_s, counts.wall_s)

    def closed_loop(self, clients: int, seconds: float) -> dict[str, Any]:
        # wrk and not our generator: it takes far less of the cores it shares with the server.
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "30s", "-s"]
        url = f"http://{self.plan.target.authority}/"
        command += [str(_SCRIPT), url, "--", str(self.listing)]

        before_s, generator_s = self.server.cpu_s(), _children_cpu_s()
        output = subprocess.run(  # noqa: S603 - our own command
            command, check=True, capture_output=True, text=True, timeout=seconds + 60
        ).stdout
        used_s = self.server.cpu_s() - before_s
        return wrk_numbers(output, used_s) | {"generator_cpu_s": _children_cpu_s() - generator_s}


def wrk_numbers(output: str, used_s: float) -> dict[str, Any]:
    """Returns the numbers of one run of wrk, during which the server used `used_s` CPU seconds."""
    found = re.search(r"^JSON (.*)$", output, re.MULTILINE)
    if found is None:
        raise ValueError(f"wrk printed no result line: {output[-300:]!r}")

    summary = json.loads(found[1])
    # An answer that is not 2xx or 3xx is a failure and no throughput.
    n = summary["n"] - summary["status_errors"]

    return {
        "n": n,
        "per_s": n / summary["duration_us"] * 1e6,
        "cpu_ms_per_request": 1e3 * used_s / max(1, n),
        "latency_p50_ms": summary["p50_us"] / 1e3,
        "latency_p90_ms": summary["p90_us"] / 1e3,
        "latency_p99_ms": summary["p99_us"] / 1e3,
        "n_failed": summary["status_errors"] + summary["socket_errors"],
    }


@contextmanager
def running(contender: Contender, setting: Setting, work: Work) -> Iterator[Session]:
    """Starts a server and ends it with everything it started.

    Raises:
        NotStarted: no answer in time; the message has the end of the server's log.
    """
    with TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        port = free_port()
        deadline = {"X-Request-Timeout-Ms": str(work.deadline_ms)}
        headers = deadline if contender.deadline_header else {}
        broken = corrupt(list(work.photos), _N_CORRUPT)
        good = [http_request(setting, photo, {}) for photo in work.photos]
        bad = [http_request(setting, photo, {}) for photo in broken]
        hurried = [http_request(setting, photo, headers) for photo in work.photos]
        plan = write_plan(folder / "requests", port, good, bad)
        urgent = write_plan(folder / "urgent", port, hurried)
        listing = write_listing(folder, good)

        command = [
            part.format(
                bin=bin_folder(contender.home or contender.name),
                server=SERVERS / contender.name,
                port=port,
            )
            for part in contender.command
        ]

        environment = _environment(contender, setting, work, folder, port)

        home = folder / "run"  # some servers write settings into their working directory
        home.mkdir()
        with ServerTree(command, environment, home, folder / "server.log") as server:
            session = Session(server, plan, urgent, listing, 0.0, folder, work.expected)
            yield replace(session, cold_start_s=_wait_for_answer(session))


def _wait_for_answer(session: Session) -> float:
    # Here the sender runs in this process: starting another one would count as start time.
    server = session.server
    plan = replace(session.plan, good=session.plan.good[:1], seconds=1, n_requests=1, drain_s=10)
    while time.monotonic() < server.started_s + START_LIMIT_S and server.running:
        sender = Sender(plan)
        sender.run(time.monotonic())
        if read_rows(sender.buffer)["status"][-1:] == 200:
            return time.monotonic() - server.started_s
        time.sleep(0.02)
    raise NotStarted(server.log_tail())


def write_plan(file: Path, port: int, good: Sequence[bytes], bad: Sequence[bytes] = ()) -> Plan:
    """Writes whole requests for a server on 127.0.0.1 and returns the plan that has them."""
    places = write_requests(file, [*good, *bad])
    target, n = Target("127.0.0.1", port), len(good)
    return Plan(target, str(file), places[:n], places[n:], timeout_s=_NO_TIMEOUT_S)


def write_listing(folder: Path, requests: Sequence[bytes]) -> Path:
    """Writes each request into a file, and the list of these files for wrk."""
    files = [folder / f"good-{number}" for number in range(len(requests))]
    for file, request in zip(files, requests, strict=True):
        file.write_bytes(request)
    listing = folder / "requests.txt"
    listing.write_text("".join(f"{file}\n" for file in files), encoding="utf-8")
    return listing


def _row(row: Any) -> Row:
    return Row(
        bad=bool(row["flags"] & WITH_BROKEN_PICTURE),
        intended_s=float(row["intended_s"]),
        sent_s=float(row["sent_s"]),
        done_s=float(row["done_s"]),
        status=int(row["status"]),
        retry_after=bool(row["flags"] & RETRY_AFTER),
    )


def _environment(
    contender: Contender, setting: Setting, work: Work, folder: Path, port: int
) -> dict[str, str]:
    """Returns a server's whole environment, with only the essentials of the caller's."""
    scripts = SERVERS / contender.name
    own = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}

    # Some servers start helpers by name, which must come from their own environment.
    own["PATH"] = f"{bin_folder(contender.home or contender.name)}:{own.get('PATH', '')}"
    own |= {"HOME": str(folder), "ORT_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}

    # convserve reads models from a repository; the others get the files in BENCH_ variables.
    if contender.ours:
        name = work.graph.parent.parent.name
        # A repository with this version only: other models would count as start time and memory.
        shutil.copytree(work.graph.parent, folder / "models" / name / work.graph.parent.name)
        return own | {"CONVSERVE_MODELS_DIR": str(folder / "models")} | dict(setting.environment)
    return (
        own
        | {
            "BENCH_GRAPH": str(work.graph),
            "BENCH_MANIFEST": str(work.graph.with_name("manifest.json")),
            "BENCH_PORT": str(port),
            "PYTHONPATH": f"{scripts}:{SERVERS}",
            "BENTOML_DO_NOT_TRACK": "True",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        | dict(setting.environment)
    )


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

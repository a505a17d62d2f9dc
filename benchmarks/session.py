"""One running server, and the load to put on it."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks import loadplan
from benchmarks.answers import SERVERS, Agreement, agreement
from benchmarks.contenders import Contender, Setting, http_request
from benchmarks.loadplan import Outcome, Plan
from benchmarks.photos import ROOT, corrupt
from benchmarks.processes import ServerTree, free_port
from benchmarks.venvs import bin_folder

START_LIMIT_S: Final = 60.0
_N_CORRUPT: Final = 30  # ten of each kind
_VERIFY_CLIENTS: Final = 4
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
class Session:
    """A server that has answered its first request, and files with requests for it."""

    server: ServerTree
    port: int
    good: list[str]
    bad: list[str]  # with broken pictures
    urgent: list[str]  # the good ones with a deadline, where the server honours it
    cold_start_s: float  # from the start of the process to the first answer with 200
    folder: Path
    expected: Sequence[Sequence[int]]

    def verify(self) -> Agreement:
        """Sends every photo once, which is also the warm-up; raises WrongAnswers."""
        plan = Plan(
            self.port,
            self.good,
            seconds=120,
            clients=_VERIFY_CLIENTS,
            n_requests=len(self.expected),
            keep_bodies=True,
        )
        return agreement(self.load(plan).bodies, self.expected)

    def load(self, plan: Plan) -> Outcome:
        # A process of its own: its CPU time is counted apart, and this one stays idle meanwhile.
        file = self.folder / "plan.json"
        file.write_text(json.dumps(asdict(plan)), encoding="utf-8")
        output = subprocess.run(  # noqa: S603 - our own module
            [sys.executable, "-m", "benchmarks.loadgen", str(file)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            timeout=plan.seconds + plan.drain_s + 60,
        ).stdout
        return loadplan.from_json(json.loads(output))

    def closed_loop(self, clients: int, seconds: float) -> dict[str, Any]:
        # wrk and not our generator: it takes far less of the cores it shares with the server.
        listing = self.folder / "requests.txt"
        listing.write_text("\n".join(self.good) + "\n", encoding="utf-8")
        command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", "30s", "-s"]
        command += [str(_SCRIPT), f"http://127.0.0.1:{self.port}/", "--", str(listing)]

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
        requests = _write_requests(folder, contender, setting, work)

        port = free_port()
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
            session = Session(
                server, port, *requests, cold_start_s=0.0, folder=folder, expected=work.expected
            )
            yield replace(session, cold_start_s=_wait_for_answer(session))


def _wait_for_answer(session: Session) -> float:
    # Here the generator runs in this process: starting another one would count as start time.
    from benchmarks.loadgen import Generator

    server = session.server
    while time.monotonic() < server.started_s + START_LIMIT_S and server.running:
        plan = Plan(session.port, session.good[:1], seconds=1, n_requests=1, drain_s=10, lead_s=0.0)
        rows = Generator(plan).run().rows
        if rows and rows[-1].status == 200:
            return time.monotonic() - server.started_s
        time.sleep(0.02)
    raise NotStarted(server.log_tail())


def _write_requests(
    folder: Path, contender: Contender, setting: Setting, work: Work
) -> tuple[list[str], list[str], list[str]]:
    def write(kind: str, pictures: Sequence[bytes], headers: dict[str, str]) -> list[str]:
        files = []
        for index, picture in enumerate(pictures):
            file = folder / f"{kind}-{index}"
            file.write_bytes(http_request(setting, picture, headers))
            files.append(str(file))
        return files

    good = write("good", work.photos, {})
    bad = write("bad", corrupt(list(work.photos), _N_CORRUPT), {})
    if not contender.deadline_header:
        return good, bad, good
    return good, bad, write("urgent", work.photos, {"X-Request-Timeout-Ms": str(work.deadline_ms)})


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

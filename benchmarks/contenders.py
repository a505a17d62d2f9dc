"""The servers to measure and the settings of each.

A new server is a folder in `servers/` and a row in `CONTENDERS`. The best of its settings counts,
so that no server is measured in a poor one. A server that can batch has at least one setting that
does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from convserve.loadtest.bodies import BODIES, Options

CORES: Final = len(os.sched_getaffinity(0))
BASELINE: Final = "convserve_baseline"


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run a server."""

    name: str  # as in the tables
    environment: Mapping[str, str]  # BENCH_* for the scripts, or the server's own variables
    path: str = "/classify"
    body: str = "raw"  # the kind of request in `convserve.loadtest.bodies`
    field: str | None = None  # of a form or tensor


@dataclass(frozen=True, slots=True)
class Contender:
    """A server.

    Attributes:
        name: as in the tables; its folder in `servers/` and its virtual environment have this name.
        command: starts it. {bin} is its environment's bin folder, {server} its folder in
            `servers/`, {port} where it listens. Commands begin with {bin}/python, because the
            scripts in a bin folder hold an absolute path and break when the environment is copied.
        settings: the best of them counts.
        deadline_header: the server honours `X-Request-Timeout-Ms`.
        home: its virtual environment, if that has another name.
        ours: it is convserve, from this tree or from another.
    """

    name: str
    command: tuple[str, ...]
    settings: tuple[Setting, ...]
    deadline_header: bool = False
    home: str = ""
    ours: bool = False


def _env(*, batch: int = 1, workers: int = 1, threads: int = 1, **more: str) -> dict[str, str]:
    numbers = {"BENCH_BATCH": batch, "BENCH_WORKERS": workers, "BENCH_THREADS": threads}
    return {name: str(value) for name, value in numbers.items()} | more


_SCRIPT: Final = ("{bin}/python", "{server}/server.py")
_QUIET: Final = {"CONVSERVE_LOG_LEVEL": "warning"}  # the others write no request log either
_WORKERS: Final = {"CONVSERVE_WORKERS": str(CORES)}
_V2: Final = "/v2/models/classifier/infer"

CONTENDERS: Final = (
    Contender(
        "convserve",
        ("{bin}/python", "-m", "convserve", "serve", "--port", "{port}"),
        (
            Setting("defaults", {}, "/v1/classify"),
            Setting("no request log", _QUIET, "/v1/classify"),
        ),
        deadline_header=True,
        ours=True,
    ),
    Contender(
        "convserve_processes",
        ("{bin}/python", "-m", "convserve", "serve", "--port", "{port}"),
        (Setting("a process a core, no request log", _WORKERS | _QUIET, "/v1/classify"),),
        deadline_header=True,
        home="convserve",
        ours=True,
    ),
    # Another checkout of convserve, given by --baseline, to compare a change with the state before.
    Contender(
        BASELINE,
        ("{bin}/python", "{bin}/convserve", "serve", "--port", "{port}"),
        (Setting("no request log", _QUIET, "/v1/classify"),),
        deadline_header=True,
        ours=True,
    ),
    Contender(
        f"{BASELINE}_processes",
        ("{bin}/python", "{bin}/convserve", "serve", "--port", "{port}"),
        (Setting("a process a core, no request log", _WORKERS | _QUIET, "/v1/classify"),),
        deadline_header=True,
        home=BASELINE,
        ours=True,
    ),
    Contender(
        "fastapi_plain",
        _SCRIPT,
        (
            Setting("async handler", {"BENCH_HANDLER": "async"}),
            Setting("thread pool", {"BENCH_HANDLER": "threads"}),
        ),
    ),
    Contender(
        "fastapi_tuned",
        _SCRIPT,
        (
            Setting("a thread a core", _env(threads=CORES)),
            Setting("a process a core", _env(workers=CORES)),
            Setting("a thread a core, batch 8", _env(threads=CORES, batch=8)),
        ),
    ),
    Contender(
        "litserve",
        _SCRIPT,
        (
            Setting("a worker a core, batch 8", _env(workers=CORES, batch=8), "/predict"),
            Setting("a worker a core, batch 2", _env(workers=CORES, batch=2), "/predict"),
            Setting("a worker a core, no batching", _env(workers=CORES), "/predict"),
        ),
    ),
    Contender(
        "bentoml",
        (
            "{bin}/python",
            "-m",
            "bentoml",
            "serve",
            "service:Classify",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
            "--working-dir",
            "{server}",
        ),
        (
            Setting(
                "a worker a core, batch 8",
                _env(workers=CORES, batch=8, BENCH_BATCHING="on"),
                body="multipart",
                field="images",
            ),
            Setting(
                "one worker, batch 8, all cores a run",
                _env(threads=CORES, batch=8, BENCH_BATCHING="on"),
                body="multipart",
                field="images",
            ),
            Setting("a worker a core, no batching", _env(workers=CORES, BENCH_BATCHING="off")),
        ),
    ),
    Contender(
        "mlserver",
        _SCRIPT,
        (
            Setting("a worker a core, batch 8", _env(workers=CORES, batch=8), _V2, "oip"),
            Setting("no workers, batch 8", _env(workers=0, threads=CORES, batch=8), _V2, "oip"),
            Setting("no workers, raw body, no batching", _env(workers=0)),
        ),
    ),
    Contender(
        "rayserve",
        _SCRIPT,
        (
            Setting("a replica a core, batch 8", _env(workers=CORES, batch=8), "/"),
            Setting("a replica a core, batch 1", _env(workers=CORES), "/"),
            Setting("one replica, batch 8, all cores a run", _env(threads=CORES, batch=8), "/"),
        ),
    ),
    Contender(
        "mosec",
        (*_SCRIPT, "--address", "127.0.0.1", "--port", "{port}", "--timeout", "60000"),
        (
            Setting(
                "a worker a core, batch 8",
                _env(workers=CORES, batch=8, BENCH_STAGES="1"),
                "/inference",
            ),
            Setting(
                "a worker a core, batch 1", _env(workers=CORES, BENCH_STAGES="1"), "/inference"
            ),
            Setting(
                "two stages, batch 8", _env(workers=CORES, batch=8, BENCH_STAGES="2"), "/inference"
            ),
        ),
    ),
)


def find(name: str) -> Contender:
    """Returns a contender by name, or raises KeyError with the known names."""
    for contender in CONTENDERS:
        if contender.name == name:
            return contender
    raise KeyError(f"{name} is unknown; known are {', '.join(one.name for one in CONTENDERS)}")


def http_request(setting: Setting, picture: bytes, headers: Mapping[str, str] = {}) -> bytes:
    """Returns the whole HTTP/1.1 request for one picture, with extra headers."""
    call = BODIES[setting.body].call([picture], Options(path=setting.path, field=setting.field))
    all_headers = (
        ("Host", "127.0.0.1"),
        ("Content-Length", str(len(call.content))),
        *call.headers,
        *headers.items(),
    )
    head = f"{call.method} {call.path} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in all_headers)
    return head.encode("ascii") + b"\r\n" + call.content

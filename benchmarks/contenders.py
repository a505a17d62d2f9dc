"""The servers that are measured and the settings that each may choose from.

A new server is a folder in `servers/` and a row in `CONTENDERS`. The best of its settings counts, so
so that no server is measured in a poor one. Each has at least one with its own batching, if it has any.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

CORES: Final = len(os.sched_getaffinity(0))
BASELINE: Final = "convserve_baseline"
_BOUNDARY: Final = "benchmarkboundary"


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run a server.

    Attributes:
        name: as in the tables.
        environment: what distinguishes it, BENCH_* for the scripts or the server's own variables.
        path: where it classifies.
        wire: how a picture is sent: "raw" body, "multipart" form, or "v2" (base64 in JSON).
    """

    name: str
    environment: Mapping[str, str]
    path: str = "/classify"
    wire: str = "raw"


@dataclass(frozen=True, slots=True)
class Contender:
    """A server.

    Attributes:
        name: its folder in `servers/` and its virtual environment.
        command: what starts it; {bin} is its environment's bin folder
            (programs in it are not used, so that an environment may be copied), {port} where to listen.
        settings: the first is what `smoke` starts; the best counts.
        deadline_header: the server honours `X-Request-Timeout-Ms`.
        home: its virtual environment and its folder in `servers/`; its name if not given.
        ours: it is convserve, of this tree or of another.
    """

    name: str
    command: tuple[str, ...]
    settings: tuple[Setting, ...] = field(default=())
    deadline_header: bool = False
    home: str = ""
    ours: bool = False


def _env(*, batch: int = 1, workers: int = 1, threads: int = 1, **more: str) -> dict[str, str]:
    numbers = {"BENCH_BATCH": batch, "BENCH_WORKERS": workers, "BENCH_THREADS": threads}
    return {name: str(value) for name, value in numbers.items()} | more


_SCRIPT: Final = ("{bin}/python", "{server}/server.py")
_QUIET: Final = {"CONVSERVE_LOG_LEVEL": "warning"}
_PROCESSES: Final = {"CONVSERVE_WORKERS": str(CORES)}
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
        (Setting("a process a core, no request log", _PROCESSES | _QUIET, "/v1/classify"),),
        deadline_header=True,
        home="convserve",
        ours=True,
    ),
    # Another checkout of convserve, named by --baseline: how a change is compared with what was.
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
        (Setting("a process a core, no request log", _PROCESSES | _QUIET, "/v1/classify"),),
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
                wire="multipart",
            ),
            Setting(
                "one worker, batch 8, all cores a run",
                _env(threads=CORES, batch=8, BENCH_BATCHING="on"),
                wire="multipart",
            ),
            Setting("a worker a core, no batching", _env(workers=CORES, BENCH_BATCHING="off")),
        ),
    ),
    Contender(
        "mlserver",
        _SCRIPT,
        (
            Setting("a worker a core, batch 8", _env(workers=CORES, batch=8), _V2, "v2"),
            Setting("no workers, batch 8", _env(workers=0, threads=CORES, batch=8), _V2, "v2"),
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
    """Returns the contender of a name, or raises KeyError that lists the names."""
    for contender in CONTENDERS:
        if contender.name == name:
            return contender
    raise KeyError(f"{name}: known are {', '.join(one.name for one in CONTENDERS)}")


def http_request(setting: Setting, picture: bytes, headers: Mapping[str, str] = {}) -> bytes:
    """Returns the whole HTTP/1.1 request that asks a server about one picture.

    Args:
        setting: its path and wire.
        picture: the image file.
        headers: added as they are.
    """
    content_type, body = _BODIES[setting.wire](picture)
    lines = [
        f"POST {setting.path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


def _raw(picture: bytes) -> tuple[str, bytes]:
    return "image/jpeg", picture


def _multipart(picture: bytes) -> tuple[str, bytes]:
    head = (
        f"--{_BOUNDARY}\r\n"
        'Content-Disposition: form-data; name="images"; filename="picture.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    )
    body = head.encode("ascii") + picture + f"\r\n--{_BOUNDARY}--\r\n".encode("ascii")
    return f"multipart/form-data; boundary={_BOUNDARY}", body


def _v2(picture: bytes) -> tuple[str, bytes]:
    tensor = {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "data": [base64.b64encode(picture).decode("ascii")],
    }
    return "application/json", json.dumps({"inputs": [tensor]}).encode("ascii")


_BODIES: Final = {"raw": _raw, "multipart": _multipart, "v2": _v2}

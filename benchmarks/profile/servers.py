"""The servers to profile, and one of them running under load."""

from __future__ import annotations

import http.client
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from benchmarks.contenders import CORES, Setting, http_request
from benchmarks.photos import ROOT
from benchmarks.processes import ServerTree, free_port
from benchmarks.session import NotStarted, Session, write_listing, write_plan

_LAUNCH: Final = Path(__file__).with_name("launch.py")
_START_LIMIT_S: Final = 60.0
_PATH: Final = "/v1/classify"  # the minimal front answers any
MINIMAL: Final = "minimal front"


@dataclass(frozen=True, slots=True)
class Server:
    """A server: {port}, {graph} and {cores} in its arguments are filled in."""

    name: str
    checkout: Path  # where its code is
    arguments: tuple[str, ...]
    threads_only: bool = True  # its lanes are threads, so that they can be replaced by idle ones


def convserve(name: str, checkout: Path, *options: str) -> Server:
    arguments = ("convserve", "serve", "--port", "{port}", *options)
    return Server(name, checkout, arguments, threads_only="--workers" not in options)


def minimal(name: str, *options: str) -> Server:
    module = "benchmarks.profile.minimal"
    return Server(name, ROOT, (module, "--port", "{port}", "--graph", "{graph}", *options))


def servers(baseline: Path | None) -> list[Server]:
    workers = ("--workers", str(max(2, CORES)))
    found = [convserve("convserve", ROOT), convserve("convserve, workers", ROOT, *workers)]
    if baseline is not None:
        found += [
            convserve("baseline", baseline),
            convserve("baseline, workers", baseline, *workers),
        ]
    return [*found, minimal(MINIMAL), minimal(f"{MINIMAL}, batches of 8", "--most", "8")]


@contextmanager
def running(
    server: Server, graph: Path, photos: Sequence[bytes], launch: Sequence[str] = ()
) -> Iterator[Session]:
    """Starts a server and ends it; `launch` are options of launch.py.

    Raises:
        NotStarted: no answer in time; the message has the end of the server's log.
    """
    with TemporaryDirectory(prefix="profile-") as name:
        folder = Path(name)
        # A repository with this version only.
        version = graph.parent
        shutil.copytree(version, folder / "models" / version.parent.name / version.name)

        port = free_port()
        good = [http_request(Setting("", {}, _PATH), photo) for photo in photos]
        plan = write_plan(folder / "requests", port, good)
        listing = write_listing(folder, good)

        filled = (one.format(port=port, graph=graph) for one in server.arguments)
        # Without the folder of launch.py on the path (-P), where modules of ours would hide others.
        command = [sys.executable, "-P", str(_LAUNCH), *launch, *filled]
        environment = {key: os.environ[key] for key in ("PATH", "LANG", "TZ") if key in os.environ}
        environment |= {
            "HOME": name,
            "ORT_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(server.checkout),
            "CONVSERVE_MODELS_DIR": str(folder / "models"),
        }

        with ServerTree(command, environment, server.checkout, folder / "server.log") as tree:
            session = Session(tree, plan, plan, listing, 0.0, folder, [])
            _wait_for_answer(session, photos[0])
            yield session


def root_of(session: Session) -> int:
    """Returns the server's first process, whose main thread runs the event loop."""
    return next(stat.pid for stat in session.server.tree() if stat.parent == os.getpid())


def load(session: Session, clients: int, seconds: float) -> dict[str, Any]:
    """Puts load on a server; raises RuntimeError if a request fails."""
    numbers = session.closed_loop(clients, seconds)
    if numbers["n_failed"]:
        raise RuntimeError(f"{numbers['n_failed']} requests failed: {session.server.log_tail()}")
    return numbers


def _wait_for_answer(session: Session, photo: bytes) -> None:
    server = session.server
    while time.monotonic() < server.started_s + _START_LIMIT_S and server.running:
        connection = http.client.HTTPConnection("127.0.0.1", session.plan.target.port, timeout=10)
        try:
            connection.request("POST", _PATH, photo, {"Content-Type": "image/jpeg"})
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass  # it does not listen yet
        finally:
            connection.close()
        time.sleep(0.05)
    raise NotStarted(server.log_tail())

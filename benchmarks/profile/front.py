"""The front alone: how many requests one core parses, checks, hands over and answers.

The lanes wait 4 ms for each batch and use no core. The server runs on one core and wrk on another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import on_core
from benchmarks.profile import proc
from benchmarks.profile.servers import MINIMAL, Server, load, root_of, running
from benchmarks.profile.threads import per_request

IDLE_MS: Final = 4
_LANES: Final = 32  # as many as clients, so that the lanes never limit the rate


def measure(
    server: Server, graph: Path, photos: Sequence[bytes], clients: Sequence[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """Yields the numbers of one front; needs two cores, and a server whose lanes are threads."""
    ours, theirs = sorted(os.sched_getaffinity(0))[:2]
    launch = ["--core", str(ours)]
    lanes = ("--lanes", str(_LANES))
    if server.name.startswith(MINIMAL):
        server = replace(server, arguments=(*server.arguments, *lanes, "--idle-ms", str(IDLE_MS)))
    else:
        server = replace(server, arguments=(*server.arguments, *lanes))
        launch += ["--idle-ms", str(IDLE_MS)]

    with running(server, graph, photos, launch) as session, on_core(theirs):
        load(session, max(clients), 1)
        root = root_of(session)
        for n in clients:
            before = proc.read_threads([root])
            numbers = load(session, n, seconds)
            used = proc.by_role(before, proc.read_threads([root]), root)
            yield {"clients": n, **numbers, "roles": per_request(used, numbers["n"])}

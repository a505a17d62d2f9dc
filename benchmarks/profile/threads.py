"""What a request costs by thread: CPU time, context switches, system calls of the event loop."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.bare import loop_of_threads
from benchmarks.processes import ServerTree
from benchmarks.profile import proc
from benchmarks.profile.servers import Server, load, root_of, running

Numbers = dict[str, Any]


def measure(
    server: Server, graph: Path, photos: Sequence[bytes], clients: Sequence[int], seconds: float
) -> Iterator[Numbers]:
    """Yields the numbers of one server for each number of clients."""
    with running(server, graph, photos) as session:
        load(session, max(clients), 1)  # warm-up
        root = root_of(session)
        for n in clients:
            before = _threads(session.server)
            numbers = load(session, n, seconds)
            used = proc.by_role(before, _threads(session.server), root)
            yield {"clients": n, **numbers, "roles": per_request(used, numbers["n"])}


def count_calls(
    server: Server, graph: Path, photos: Sequence[bytes], clients: Sequence[int], seconds: float
) -> Iterator[Numbers]:
    """Yields the system calls of the event loop a request. Apart, because strace slows it down."""
    with running(server, graph, photos) as session:
        load(session, max(clients), 1)
        root, file = root_of(session), session.folder / "strace"
        for n in clients:
            with proc.counted_calls(root, file):
                numbers = load(session, n, seconds)
            calls = proc.parse_calls(file.read_text())
            yield {
                "clients": n,
                "calls": {name: count / numbers["n"] for name, count in calls.items()},
            }


def per_request(used: dict[str, proc.ThreadUse], n: int) -> dict[str, dict[str, float]]:
    return {
        role: {
            "cpu_us": 1e6 * use.cpu_s / n,
            "voluntary": use.voluntary / n,
            "involuntary": use.involuntary / n,
        }
        for role, use in used.items()
    }


def bare_loop(graph: Path, photos: Sequence[bytes], seconds: float) -> Numbers:
    """Runs the loop without a server: a thread a core, one picture a run."""
    # A process of its own: its threads and sessions must not burden the servers that follow.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        numbers: Numbers = pool.submit(loop_of_threads, graph, photos, "library", seconds).result()
    return numbers


def _threads(server: ServerTree) -> dict[proc.Thread, proc.ThreadUse]:
    return proc.read_threads(stat.pid for stat in server.tree())

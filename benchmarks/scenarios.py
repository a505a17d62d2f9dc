"""The scenarios that are measured on a running server, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from benchmarks.measures import summarise
from benchmarks.session import Session
from convserve.loadtest.sending.plan import Plan

CLIENTS: Final = (1, 8, 32, 64)
SHARES_PERCENT: Final = (50, 80, 120, 200)  # of the server's own capacity
_CORRUPT_CLIENTS: Final = 32
_CORRUPT_SHARE: Final = 0.01
_DRAIN_S: Final = 5.0  # for answers after the last request
_IDLE_S: Final = 10.0
_SETTLE_S: Final = 8.0  # for the work that a server does once after its start


@dataclass(frozen=True, slots=True)
class Course:
    """Which scenarios one visit to a server measures, and how."""

    seconds: float  # of each load
    capacity_per_s: float | None  # the open loops' shares refer to it; None leaves them out
    best_other_per_s: float | None  # capacity of the best other server; None leaves it out
    deadline_s: float  # answers within it are goodput
    round: int  # seeds the arrivals: new ones in each round, the same for all servers
    idle: bool  # measure the idle CPU too


Found = tuple[str, dict[str, Any]]


def visit(session: Session, course: Course) -> Iterator[Found]:
    """Yields the name and the numbers of each scenario."""
    agreed = session.verify()
    start = {"cold_start_s": session.cold_start_s, **asdict(agreed)}

    # `verify` was the warm-up; its last work must not count as memory or idle CPU.
    session.server.wait_until_quiet()
    start["memory_warm_bytes"] = session.server.memory_bytes()
    if course.idle:
        start["idle_core_percent"] = _idle_core_percent(session)
    yield "start", start

    for clients in CLIENTS:
        numbers = session.closed_loop(clients, course.seconds)
        # The largest load reaches the highest memory, and servers rarely give any back.
        if clients == CLIENTS[-1]:
            numbers["memory_bytes"] = session.server.memory_bytes()
        yield f"closed-{clients}", numbers
        session.server.wait_until_quiet()
    yield from _open_loops(session, course)


def _open_loops(session: Session, course: Course) -> Iterator[Found]:
    if course.capacity_per_s is None:
        return
    for share in SHARES_PERCENT:
        # Deadlines matter above capacity only. The servers that know none get the same requests.
        plan = session.urgent if share > 100 else session.plan
        rate_per_s = course.capacity_per_s * share / 100
        yield f"open-{share}", _open_loop(session, course, plan, rate_per_s)

    if course.best_other_per_s is not None:
        rate_per_s = 0.8 * course.best_other_per_s
        yield "open-best-other-80", _open_loop(session, course, session.plan, rate_per_s)

    plan = replace(session.plan, clients=_CORRUPT_CLIENTS, broken_share=_CORRUPT_SHARE)
    yield "corrupt-1", _run(session, course, plan, 2 * course.seconds)


def _open_loop(session: Session, course: Course, plan: Plan, rate_per_s: float) -> dict[str, Any]:
    plan = replace(plan, phases=[(course.seconds, rate_per_s)])
    return _run(session, course, plan, course.seconds) | {"rate_per_s": rate_per_s}


def _run(session: Session, course: Course, plan: Plan, seconds: float) -> dict[str, Any]:
    plan = replace(plan, seconds=seconds, seed=course.round, drain_s=_DRAIN_S)
    before_s = session.server.cpu_s()
    outcome = session.load(plan)
    used_s = session.server.cpu_s() - before_s
    numbers = summarise(outcome.rows, seconds, course.deadline_s)
    session.server.wait_until_quiet()
    return numbers | {
        "server_cpu_s": used_s,
        "generator_cpu_s": outcome.cpu_s,
        "generator_cores": outcome.cpu_s / outcome.wall_s,
    }


def _idle_core_percent(session: Session) -> float:
    time.sleep(_SETTLE_S)
    before_s, started_s = session.server.cpu_s(), time.monotonic()
    time.sleep(_IDLE_S)
    return 100 * (session.server.cpu_s() - before_s) / (time.monotonic() - started_s)

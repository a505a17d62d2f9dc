"""What a sender sends: the plan, the file with the requests, and the send times."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

PHASE_SEED: Final = 1_000_003  # a prime, so that seeds of processes and phases do not meet


@dataclass(frozen=True, slots=True)
class Target:
    """Where the requests go."""

    host: str
    port: int
    tls: bool = False
    verify: bool = True  # the server's certificate

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of one sender.

    `phases` make an open loop: (seconds, requests a second) in order. Without them it is a closed
    loop: each client sends its next request when its last one has ended.
    """

    target: Target
    requests: str  # file with all requests, one after the other
    good: list[tuple[int, int]]  # offset and length of each whole request; sent in rotation
    broken: list[tuple[int, int]] = field(default_factory=list)  # with broken pictures
    broken_share: float = 0.0  # of the requests, 0..1
    seconds: float = 5.0
    phases: list[tuple[float, float]] | None = None
    poisson: bool = True  # random gaps in an open loop, else even ones
    clients: int = 1
    n_requests: int | None = None  # of a closed loop, at most; None for as many as fit
    seed: int = 0
    part: tuple[int, int] = (0, 1)  # this sender's number, and of how many
    timeout_s: float = 30.0  # from the intended send time
    drain_s: float | None = None  # for answers after the last request; None: until they time out
    body: str | None = None  # kind whose answers are read; None: statuses only
    n_pictures: int = 1  # in each request
    keep_bodies: bool = False  # of answers to good requests


def from_json(values: dict[str, Any]) -> Plan:
    # JSON has no tuples.
    values = values | {
        "target": Target(**values["target"]),
        "good": [tuple(one) for one in values["good"]],
        "broken": [tuple(one) for one in values["broken"]],
        "phases": values["phases"] and [tuple(one) for one in values["phases"]],
        "part": tuple(values["part"]),
    }
    return Plan(**values)


def send_times(plan: Plan) -> Iterator[float]:
    """Yields when this sender of an open loop sends, in seconds from the start."""
    number, n_parts = plan.part
    start_s = 0.0
    for index, (seconds, rate_per_s) in enumerate(plan.phases or ()):
        if plan.poisson:
            # A Poisson process has exponential gaps: independent users, who do not wait for each
            # other. It is the sum of n independent ones with an nth of the rate each.
            random = Random(plan.seed + PHASE_SEED * (index * n_parts + number))  # noqa: S311 - nothing secret
            own_per_s = rate_per_s / n_parts
            at_s = random.expovariate(own_per_s) if own_per_s else seconds
            while at_s < seconds:
                yield start_s + at_s
                at_s += random.expovariate(own_per_s)
        else:
            for step in range(number, round(seconds * rate_per_s), n_parts):
                yield start_s + step / rate_per_s
        start_s += seconds


def write_requests(file: Path, requests: Sequence[bytes]) -> list[tuple[int, int]]:
    """Writes requests one after the other; returns offset and length of each."""
    places = []
    offset = 0
    with file.open("wb") as stream:
        for request in requests:
            stream.write(request)
            places.append((offset, len(request)))
            offset += len(request)
    return places


class Requests:
    """The requests of a file, which all senders share in memory."""

    def __init__(self, file: Path) -> None:
        with file.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)

    def at(self, place: tuple[int, int]) -> memoryview:
        offset, length = place
        return self._view[offset : offset + length]

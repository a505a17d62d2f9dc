"""A load generator's input and output: plans, send times, HTTP responses, outcomes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from benchmarks.measures import Row


@dataclass(frozen=True, slots=True)
class Plan:
    """What a load generator sends."""

    port: int  # of a server on 127.0.0.1
    good: list[str]  # files that each hold a whole request; sent in rotation
    bad: list[str] = field(default_factory=list)  # the same with broken pictures
    seconds: float = 5.0
    rate_per_s: float | None = None  # of an open loop; None for a closed loop of `clients`
    clients: int = 1
    n_requests: int | None = None  # of a closed loop, at most; None for as many as fit
    bad_share: float = 0.0  # of the requests, 0..1
    poisson: bool = True  # random gaps in an open loop, else even ones
    seed: int = 0
    drain_s: float = 5.0  # for answers after the last request
    keep_bodies: bool = False
    lead_s: float = 0.1  # time to get ready before the first request


@dataclass(slots=True)
class Outcome:
    """The result of a plan."""

    rows: list[Row]  # in the order in which the requests ended
    bodies: dict[int, str]  # by the position of the file in `Plan.good`, if kept
    cpu_s: float  # of the generator itself
    wall_s: float


def send_times(plan: Plan) -> list[float]:
    """Returns when an open loop sends, in seconds from its start."""
    assert plan.rate_per_s is not None
    if not plan.poisson:
        return [index / plan.rate_per_s for index in range(int(plan.seconds * plan.rate_per_s))]
    random = Random(plan.seed)  # noqa: S311 - nothing secret
    times: list[float] = []
    at_s = random.expovariate(plan.rate_per_s)

    # A Poisson process has exponential gaps: independent users, who do not wait for each other.
    while at_s < plan.seconds:
        times.append(at_s)
        at_s += random.expovariate(plan.rate_per_s)
    return times


def to_json(outcome: Outcome) -> dict[str, Any]:
    return asdict(outcome)


def from_json(values: dict[str, Any]) -> Outcome:
    # JSON has only strings for keys.
    rows = [Row(**row) for row in values["rows"]]
    bodies = {int(photo): body for photo, body in values["bodies"].items()}
    return Outcome(rows, bodies, values["cpu_s"], values["wall_s"])


def parse_answer(data: bytes | bytearray) -> tuple[int, bytes, bytes] | None:
    """Returns status, lower-case head and body of a response, or None if it is incomplete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None

    # Enough HTTP for the servers here: a length or chunks, and one response at a time.
    head = bytes(data[:end]).lower()
    body = data[end + 4 :]

    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        length = int(head[at + 17 :].split(b"\r\n", 1)[0])
        if len(body) < length:
            return None
    elif b"\r\ntransfer-encoding: chunked" in head:
        # An empty chunk ends the body. None of the servers sends trailers.
        if not body.endswith(b"0\r\n\r\n"):
            return None
        body = bytearray(_dechunk(bytes(body)))

    return int(head[9:12]), head, bytes(body)  # "http/1.1 200 ok"


def _dechunk(data: bytes) -> bytes:
    pieces = []
    while data:
        size, _, rest = data.partition(b"\r\n")
        n = int(size.split(b";")[0], 16)  # what follows a semicolon is an extension
        pieces.append(rest[:n])
        data = rest[n + 2 :]
    return b"".join(pieces)

"""Plans and results of a load generator: send times, outcomes, HTTP responses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from benchmarks.measures import Row


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send.

    Attributes:
        port: of the server on 127.0.0.1.
        good: files that each hold a whole request; sent in rotation.
        bad: the same with broken pictures.
        seconds: how long requests are sent.
        rate_per_s: open loop at this rate; None for a closed loop of `clients`.
        clients: connections of a closed loop.
        n_requests: at most; None for as many as fit.
        bad_share: how many of the requests have broken pictures, 0..1.
        poisson: random gaps of an open loop, else even ones.
        seed: of the gaps and of which requests are bad.
        drain_s: how long answers are waited for after the last request.
        keep_bodies: keep the responses' bodies.
        lead_s: from the start to the first request.
    """

    port: int
    good: list[str]
    bad: list[str] = field(default_factory=list)
    seconds: float = 5.0
    rate_per_s: float | None = None
    clients: int = 1
    n_requests: int | None = None
    bad_share: float = 0.0
    poisson: bool = True
    seed: int = 0
    drain_s: float = 5.0
    keep_bodies: bool = False
    lead_s: float = 0.1


@dataclass(slots=True)
class Outcome:
    """What became of the requests.

    Attributes:
        rows: each request in the order of its end.
        bodies: of the answers, by the position of the file in `Plan.good`, if kept.
        cpu_s: CPU seconds the generator took while sending.
        wall_s: how long it ran.
    """

    rows: list[Row]
    bodies: dict[int, str]
    cpu_s: float
    wall_s: float


def send_times(plan: Plan) -> list[float]:
    """Returns the seconds from the start at which an open loop sends."""
    assert plan.rate_per_s is not None
    if not plan.poisson:
        return [index / plan.rate_per_s for index in range(int(plan.seconds * plan.rate_per_s))]
    random = Random(plan.seed)  # noqa: S311 - nothing secret
    times: list[float] = []
    at_s = random.expovariate(plan.rate_per_s)
    while at_s < plan.seconds:
        times.append(at_s)
        at_s += random.expovariate(plan.rate_per_s)
    return times


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Returns an outcome as plain values."""
    return asdict(outcome)


def from_json(values: dict[str, Any]) -> Outcome:
    """Reads what `to_json` gave."""
    rows = [Row(**row) for row in values["rows"]]
    bodies = {int(photo): body for photo, body in values["bodies"].items()}
    return Outcome(rows, bodies, values["cpu_s"], values["wall_s"])


def parse_answer(data: bytes | bytearray) -> tuple[int, bytes, bytes] | None:
    """Returns status, head in lower case and body of an answer, or None while it is incomplete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(data[:end]).lower()
    body = data[end + 4 :]
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        length = int(head[at + 17 :].split(b"\r\n", 1)[0])
        if len(body) < length:
            return None
    elif b"\r\ntransfer-encoding: chunked" in head:
        if not body.endswith(b"0\r\n\r\n"):
            return None
        body = bytearray(_dechunk(bytes(body)))
    return int(head[9:12]), head, bytes(body)


def _dechunk(data: bytes) -> bytes:
    pieces = []
    while data:
        size, _, rest = data.partition(b"\r\n")
        n = int(size.split(b";")[0], 16)
        pieces.append(rest[:n])
        data = rest[n + 2 :]
    return b"".join(pieces)

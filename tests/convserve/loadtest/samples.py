"""Results of load tests that never happened: requests through a simulated queue."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from convserve.loadtest.histogram import Latencies
from convserve.loadtest.results import (
    Capacity,
    Checks,
    Drift,
    ErrorCount,
    Machine,
    MetricChange,
    Recovery,
    Result,
    Sender,
    Server,
    Settings,
    Stage,
    Stretch,
    Trial,
)

Floats = NDArray[np.float64]

MACHINE: Final = Machine(
    system="Linux 6.1 x86_64",
    processor="AMD EPYC 7B13",
    n_cores=2,
    python="3.11.9",
    convserve="0.1.0",
)
NO_CHECKS: Final = Checks(
    n_answers=0, n_changed=0, n_unexpected=None, examples=[], n_broken=0, n_broken_accepted=0
)
SENDER: Final = Sender(
    lag_p50_ms=0.06,
    lag_p99_ms=0.41,
    lag_max_ms=3.2,
    busiest_core=0.12,
    cpu_us_per_request=95.0,
    n_reconnects=0,
)
_NETWORK_S: Final = 0.0008


def settings(**changed: Any) -> Settings:
    values: dict[str, Any] = {
        "url": "http://127.0.0.1:8000",
        "profile": "steady",
        "body": "raw",
        "path": "/v1/classify",
        "arrivals": "poisson",
        "rate_per_s": 60.0,
        "peak_per_s": None,
        "clients": None,
        "duration_s": 60.0,
        "warmup_s": 5.0,
        "timeout_s": 10.0,
        "n_processes": 1,
        "n_pictures": 200,
        "pictures": "made for the test, seeded",
        "picture_bytes": 61_000,
        "pictures_per_request": 1,
        "broken_share": 0.0,
        "seed": 0,
        "objective": "p99<200ms,errors<0.1%",
        "command": "convserve loadtest http://127.0.0.1:8000 --rate 60 --duration 60",
    }
    return Settings(**(values | changed))


def arrivals(random: np.random.Generator, rate_per_s: float, seconds: float) -> Floats:
    n = random.poisson(rate_per_s * seconds)
    return np.sort(random.uniform(0, seconds, n))


def queue_latencies(arrivals_s: Floats, service_s: Floats) -> Floats:
    """Returns the latencies of one server that takes requests in order."""
    done_s = np.cumsum(service_s)
    # A request ends when all work since the last idle moment is done.
    idle_s = np.maximum.accumulate(arrivals_s - (done_s - service_s))
    latencies: Floats = idle_s + done_s - arrivals_s + _NETWORK_S
    return latencies


def stretch(
    name: str, start_s: float, seconds: float, latencies_s: Floats, refused: int = 0, **changed: Any
) -> dict[str, Any]:
    """Returns the fields of a `Stretch`; infinite latencies are requests without an answer."""
    counted = Latencies()
    counted.add(latencies_s)
    n_sent = len(latencies_s) + refused
    return {
        "name": name,
        "start_s": start_s,
        "seconds": seconds,
        "target_per_s": n_sent / seconds,
        "sent_per_s": n_sent / seconds,
        "goodput_per_s": counted.n_answered / seconds,
        "n_sent": n_sent,
        "n_ok": counted.n_answered,
        "n_refused": refused,
        "n_errors": n_sent - counted.n_answered,
        "latency": counted.summary(),
    } | changed


def split(
    arrivals_s: Floats, latencies_s: Floats, seconds: float, n: int, **changed: Any
) -> list[Stretch]:
    """Returns `n` intervals of equal time."""
    each = seconds / n
    index = np.minimum((arrivals_s / each).astype(int), n - 1)
    return [
        Stretch(**stretch(f"interval {i + 1}", i * each, each, latencies_s[index == i], **changed))
        for i in range(n)
    ]


def trial(fields: dict[str, Any], misses: Sequence[str] = (), sender: Sender = SENDER) -> Trial:
    return Trial(**fields, objective_met=not misses, misses=list(misses), sender=sender)


def result(
    trials: Sequence[Trial], intervals: Sequence[Stretch], profile: str = "steady", **changed: Any
) -> Result:
    values: dict[str, Any] = {
        "started_at": datetime(2026, 11, 29, 9, 30, tzinfo=UTC),
        "valid": True,
        "invalid_because": [],
        "interrupted": False,
        "objective_met": trials[-1].objective_met if trials else None,
        "settings": settings(profile=profile),
        "machine": MACHINE,
        "server": Server(software=None, models=[], memory_bytes=[], metrics=[]),
        "summary": trials[-1] if trials else None,
        "trials": list(trials),
        "intervals": list(intervals),
        "errors": [],
        "stages": [],
        "checks": NO_CHECKS,
    }
    return Result(**(values | changed))


def steady(
    rate_per_s: float = 60.0,
    seconds: float = 60.0,
    n_intervals: int = 60,
    service_s: float = 0.0095,
    seed: int = 0,
    **changed: Any,
) -> Result:
    """A run without errors: pictures of various sizes, one lane."""
    random = np.random.default_rng(seed)
    arrivals_s = arrivals(random, rate_per_s, seconds)
    service = service_s * random.gamma(12, 1 / 12, len(arrivals_s))
    latencies_s = queue_latencies(arrivals_s, service)
    target: dict[str, Any] = {"target_per_s": rate_per_s}

    return result(
        [trial(stretch("run", 0, seconds, latencies_s, **target))],
        split(arrivals_s, latencies_s, seconds, n_intervals, **target),
        **{"settings": settings(rate_per_s=rate_per_s, duration_s=seconds)} | changed,
    )


def steady_good() -> Result:
    """Everything that a good run against convserve tells."""
    run = steady()
    n = run.trials[0].n_sent
    return run.model_copy(
        update={
            "server": server(n),
            "stages": stages(n),
            "checks": NO_CHECKS.model_copy(update={"n_answers": n, "n_unexpected": 0}),
        }
    )


def ramp() -> Result:
    """A search by bisection, with a warm-up before each trial."""
    random = np.random.default_rng(4)
    rates = (20, 40, 80, 160, 120, 100, 90, 95, 92)
    trials, intervals, start_s = [], [], 0.0
    for number, rate_per_s in enumerate(rates, 1):
        seconds, name = 10.0, f"trial {number}"
        arrivals_s = arrivals(random, rate_per_s, seconds)
        latencies_s = queue_latencies(
            arrivals_s, 0.0098 * random.gamma(12, 1 / 12, len(arrivals_s))
        )
        latencies_s[latencies_s > 3] = np.inf
        fields = stretch(name, start_s, seconds, latencies_s, target_per_s=float(rate_per_s))
        p99_ms = fields["latency"].p99_ms
        found = "was not answered" if p99_ms is None else f"was {p99_ms:,.1f} ms"
        misses = [f"p99<200ms: p99 {found}"]
        trials.append(trial(fields, [] if p99_ms is not None and p99_ms < 200 else misses))
        for part in split(arrivals_s, latencies_s, seconds, 5, target_per_s=float(rate_per_s)):
            moved = {"start_s": start_s + part.start_s, "name": f"{name}, {part.name}"}
            intervals.append(part.model_copy(update=moved))
        start_s += seconds + 3

    kept = max(one.target_per_s or 0 for one in trials if one.objective_met)
    missed = min(one.target_per_s or 0 for one in trials if not one.objective_met)
    capacity = Capacity(
        rate_per_s=kept,
        kept_up_to_per_s=kept,
        missed_from_per_s=missed,
        statement=f"{kept:g}/s kept the objective in 2 of 2 trials, {missed:g}/s missed it in 1 of 1. "
        f"The limit lies between them: {100 * (missed / kept - 1):.1f}% apart.",
    )
    best = max((one for one in trials if one.objective_met), key=lambda one: one.target_per_s or 0)
    return result(
        trials,
        intervals,
        "ramp",
        summary=best,
        objective_met=True,
        capacity=capacity,
        server=server(sum(one.n_sent for one in trials)),
        stages=stages(best.n_sent),
        settings=settings(
            profile="ramp",
            rate_per_s=None,
            duration_s=90,
            command="convserve loadtest http://127.0.0.1:8000 --profile ramp",
        ),
    )


def bad() -> Result:
    """A server that stalls and refuses after its spike: timeouts, refusals, and broken pictures."""
    random = np.random.default_rng(2)
    seconds, n = 90.0, 45
    normal, busy = 50.0, 180.0
    parts = [
        arrivals(random, normal, 30),
        30 + arrivals(random, busy, 20),
        50 + arrivals(random, normal, 40),
    ]
    arrivals_s = np.concatenate(parts)
    latencies_s = queue_latencies(arrivals_s, 0.0095 * random.gamma(12, 1 / 12, len(arrivals_s)))
    refused = (latencies_s > 0.8) & (random.uniform(size=len(latencies_s)) < 0.6)
    latencies_s = np.minimum(latencies_s, 0.8 + 0.4 * random.uniform(size=len(latencies_s)))
    hanging = (arrivals_s > 64) & (arrivals_s < 69)
    latencies_s[hanging] = np.inf

    each = seconds / n
    index = (arrivals_s / each).astype(int)
    intervals = [
        Stretch(
            **stretch(
                f"interval {i + 1}",
                i * each,
                each,
                latencies_s[(index == i) & ~refused],
                int(refused[index == i].sum()),
                target_per_s=busy if 30 <= i * each < 50 else normal,
            )
        )
        for i in range(n)
    ]
    n_refused, n_lost = int(refused.sum()), int(hanging.sum())
    whole = stretch("run", 0, seconds, latencies_s[~refused], n_refused, target_per_s=None)
    slow = SENDER.model_copy(
        update={"lag_p50_ms": 0.2, "lag_p99_ms": 8.4, "lag_max_ms": 61.0, "n_reconnects": 12}
    )
    misses = [
        "p99<200ms: p99 was not answered",
        "errors<0.1%: 2,776 of 6,942 requests failed (40%)",
    ]
    refusal = '{"type":"/errors/overloaded","title":"Service Unavailable","status":503,"code":"overloaded"}'
    broken = '{"type":"/errors/image_invalid","status":422,"code":"image_invalid"}'
    return result(
        [trial(whole, misses, slow)],
        intervals,
        "spike",
        valid=False,
        invalid_because=[
            "the sender was late: p99 8.4 ms, where 5 ms are allowed. Use --processes, or another "
            "machine than the server's"
        ],
        settings=settings(
            profile="spike",
            rate_per_s=normal,
            duration_s=seconds,
            broken_share=0.01,
            command="convserve loadtest http://127.0.0.1:8000 --profile spike --rate 50 --broken 1%",
        ),
        errors=[
            ErrorCount(code="overloaded", status=503, n=n_refused, broken=False, example=refusal),
            ErrorCount(
                code="timeout", status=None, n=n_lost, broken=False, example="no answer within 10 s"
            ),
            ErrorCount(code="image_invalid", status=422, n=61, broken=True, example=broken),
        ],
        stages=stages(4000),
        server=server(len(arrivals_s), n_refused),
        checks=Checks(
            n_answers=4000,
            n_changed=2,
            n_unexpected=None,
            examples=["picture 17: tabby, earlier tiger_cat", "picture 31: lynx, earlier cougar"],
            n_broken=62,
            n_broken_accepted=1,
        ),
        recovery=Recovery(before_p99_ms=31.0, during_p99_ms=1180.0, recovered_after_s=None),
    )


def soak(n_intervals: int = 300) -> Result:
    """Two hours with a server that leaks. Its rate is low, or making it would take long."""
    run = steady(rate_per_s=4.0, seconds=7200.0, n_intervals=n_intervals, service_s=0.05)
    memory = [(24.0 * i, 4.1e8 + 3e5 * i) for i in range(300)]
    told = run.server.model_copy(update={"memory_bytes": memory})
    drift = Drift(p50_ratio=1.02, p99_ratio=None, memory_ratio=1.21)
    return run.model_copy(
        update={
            "server": told,
            "drift": drift,
            "settings": settings(profile="soak", rate_per_s=4.0, duration_s=7200.0),
        }
    )


def nothing() -> Result:
    """Stopped before the first answer."""
    return result([], [], interrupted=True, objective_met=None, summary=None)


def unanswered() -> Result:
    """Every request was sent, none answered."""
    latencies_s = np.full(300, np.inf)
    return result(
        [trial(stretch("run", 0, 5, latencies_s), ["p99<200ms: p99 was not answered"])],
        split(np.linspace(0, 5, 300, endpoint=False), latencies_s, 5, 5),
        interrupted=True,
        errors=[
            ErrorCount(code="timeout", status=None, n=300, broken=False, example="10 s passed")
        ],
    )


def stages(n: int) -> list[Stage]:
    return [
        Stage(name="receive", n=n, mean_ms=0.35, p50_ms=0.31, p99_ms=1.2),
        Stage(name="decode", n=n, mean_ms=2.9, p50_ms=2.6, p99_ms=7.4),
        Stage(name="preprocess", n=n, mean_ms=0.8, p50_ms=0.77, p99_ms=1.4),
        Stage(name="queue", n=n, mean_ms=4.1, p50_ms=1.2, p99_ms=31.0),
        Stage(name="infer", n=n, mean_ms=5.6, p50_ms=5.5, p99_ms=7.1),
        Stage(name="rank", n=n, mean_ms=0.05, p50_ms=0.05, p99_ms=0.1),
    ]


def server(n: int, n_refused: int = 0) -> Server:
    def counter(name: str, change: float, before: float = 0.0) -> MetricChange:
        return MetricChange(name=name, kind="counter", before=before, after=before + change)

    def gauge(name: str, before: float, after: float) -> MetricChange:
        return MetricChange(name=name, kind="gauge", before=before, after=after)

    route = 'route="/v1/classify"'
    return Server(
        software="convserve 0.1.0",
        models=["efficientnet_lite0/2"],
        memory_bytes=[(5.0 * i, 4.1e8 + 6e6 * (1 - 0.7**i)) for i in range(13)],
        metrics_seconds=60.5,
        metrics=[
            counter(f'convserve_requests_total{{{route},status="200"}}', n - n_refused, 300),
            counter(f'convserve_requests_total{{{route},status="503"}}', n_refused),
            counter('convserve_requests_total{route="/metrics",status="200"}', 1, 4),
            counter(
                'convserve_images_total{model="efficientnet_lite0",outcome="ok"}',
                n - n_refused,
                300,
            ),
            counter('convserve_refused_total{code="overloaded",reason="queue_time"}', n_refused),
            counter('convserve_batch_size_sum{model="efficientnet_lite0"}', n - n_refused, 300),
            counter('convserve_batch_size_count{model="efficientnet_lite0"}', 0.7 * n, 280),
            MetricChange(
                name='convserve_batch_size_bucket{model="efficientnet_lite0",le="1.0"}',
                kind="histogram",
                before=260,
                after=260 + 0.5 * n,
            ),
            counter('convserve_lane_busy_seconds_total{model="efficientnet_lite0"}', 33.4, 3.0),
            gauge("convserve_lanes", 1, 1),
            counter("process_cpu_seconds_total", 36.2, 4.4),
            gauge("process_resident_memory_bytes", 4.1e8, 4.16e8),
            gauge("convserve_images_in_flight", 0, 0),
        ],
    )

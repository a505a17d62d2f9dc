"""Load profiles: which trials make a load test, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from convserve.loadtest.histogram import merged
from convserve.loadtest.results import Capacity, Drift, ErrorCount, Recovery, Stretch
from convserve.loadtest.running.capacity import Search
from convserve.loadtest.running.recorder import MAX_CORE_SHARE, max_lag_ms
from convserve.loadtest.running.trial import Course, Outcome, Runner
from convserve.loadtest.sending.plan import Plan

Profile = Literal["steady", "ramp", "spike", "soak"]

_PRECISION: Final = 0.03  # of a ramp's answer; trials differ from each other by about as much
_FIRST_CLIENTS: Final = 16  # of the closed loop that finds where a ramp starts
_FIRST_S: Final = 3.0
_FIRST_WARMUP_S: Final = 1.0
_START_SHARE: Final = 0.9  # of that loop's rate: arrivals at random times need some room
_MAX_STRETCH: Final = 6.0  # of a trial's duration, for slow servers
_DRIFT_SHARE: Final = 0.1  # of a soak, at each end


@dataclass(frozen=True, slots=True)
class Rates:
    """How much is sent, and for how long."""

    duration_s: float  # measured; of each trial of a ramp
    warmup_s: float
    rate_per_s: float | None = None
    peak_per_s: float | None = None  # of a spike
    clients: int | None = None  # of a closed loop


@dataclass(slots=True)
class Findings:
    """What a load test has found. `chosen` is the trial that the summary is about."""

    outcomes: list[Outcome] = field(default_factory=list)
    chosen: Outcome | None = None
    capacity: Capacity | None = None
    recovery: Recovery | None = None
    drift: Drift | None = None
    invalid_because: list[str] = field(default_factory=list)
    errors: list[ErrorCount] = field(default_factory=list)  # of requests outside trials


def steady(runner: Runner, plan: Plan, rates: Rates) -> Findings:
    """One rate, or one number of clients, all the time."""
    outcome = runner.run(_course("run", plan, rates, rates.rate_per_s))
    return _conclude(Findings([outcome], outcome))


def soak(runner: Runner, plan: Plan, rates: Rates) -> Findings:
    """The same for long, to see what drifts."""
    found = steady(runner, plan, rates)
    if found.chosen is not None:
        found.drift = drift(found.chosen.recorder.intervals, runner.memory)
    return found


def spike(runner: Runner, plan: Plan, rates: Rates) -> Findings:
    """A third of the time at the usual rate, a third at the peak, a third at the usual rate."""
    if rates.rate_per_s is None or rates.peak_per_s is None:
        raise ValueError("a spike needs a usual rate and a peak")
    third_s = rates.duration_s / 3
    phases = [
        (rates.warmup_s + third_s, rates.rate_per_s),
        (third_s, rates.peak_per_s),
        (third_s, rates.rate_per_s),
    ]
    whole_s = rates.warmup_s + rates.duration_s
    plan = replace(plan, phases=phases, seconds=whole_s)
    title = f"{rates.rate_per_s:,g}/s, {rates.peak_per_s:,g}/s in the middle"
    outcome = runner.run(Course("run", plan, rates.warmup_s, rates.duration_s, title))

    found = _conclude(Findings([outcome], outcome))
    found.recovery = recovery(outcome.recorder.intervals, third_s)
    return found


def ramp(runner: Runner, plan: Plan, rates: Rates) -> Findings:
    """Searches the highest rate that keeps the objective."""
    found = Findings()
    start_per_s = rates.rate_per_s or _closed_rate(runner, plan, found)
    if start_per_s:
        _search(runner, plan, replace(rates, rate_per_s=start_per_s), found)
    if not found.outcomes and runner.was_stopped() and runner.failure is None:
        found.invalid_because.append("it ended before its first trial was complete")

    found.chosen = _at_capacity(found)
    needed = runner.objective.n_needed
    if found.chosen is not None and found.chosen.trial.latency.n < needed / 2:
        found.invalid_because.append(
            f"a trial had only {found.chosen.trial.latency.n:,} requests, too few for "
            f"{runner.objective.text}; use a longer --duration"
        )
    return _conclude(found, ramp=True)


def _search(runner: Runner, plan: Plan, rates: Rates, found: Findings) -> None:
    """Runs trials until the capacity is known; the first one has the rate of `rates`."""
    search = Search(rates.rate_per_s or 0.0, _PRECISION)
    needed = runner.objective.n_needed
    while not runner.was_stopped() and (rate_per_s := search.next_rate()) is not None:
        name = f"trial {search.n_trials + 1}"
        # A percentile of a few requests is chance. Slow servers get longer trials.
        seconds = min(needed / rate_per_s, _MAX_STRETCH * rates.duration_s)
        longer = replace(rates, duration_s=max(rates.duration_s, seconds))
        outcome = runner.run(_course(name, plan, longer, rate_per_s))
        if runner.was_stopped():
            # It was cut short, so it says nothing about its rate. Where a sender failed in the first
            # trial, what was seen is shown all the same: that result is not valid anyway.
            if runner.failure is not None and not found.outcomes:
                found.outcomes.append(outcome)
            break
        found.outcomes.append(outcome)
        trial = outcome.trial
        search.record(rate_per_s, kept=trial.objective_met)
        verdict = "kept the objective" if trial.objective_met else "; ".join(trial.misses)
        runner.progress.say(f"{name}, {rate_per_s:,g}/s: {verdict}")

        if not trial.objective_met and (why := _sender_was_the_limit(outcome)):
            found.invalid_because.append(f"at {rate_per_s:,g}/s {why}")
            break
    found.capacity = search.capacity()


PROFILES: Final[dict[Profile, Callable[[Runner, Plan, Rates], Findings]]] = {
    "steady": steady,
    "ramp": ramp,
    "spike": spike,
    "soak": soak,
}


def recovery(intervals: Sequence[Stretch], third_s: float) -> Recovery:
    """Compares the intervals before, during and after a spike that takes the middle third."""
    first_s = intervals[0].start_s if intervals else 0.0
    ends_s = first_s + 2 * third_s
    before = [one for one in intervals if one.start_s + one.seconds <= first_s + third_s]
    during = [one for one in intervals if first_s + third_s <= one.start_s < ends_s]
    after = [one for one in intervals if one.start_s >= ends_s]

    # As fast as before: no slower than the slowest interval then.
    usual = [one.latency.p99_ms for one in before if one.n_sent]
    limit_ms = max(usual_ms for usual_ms in usual if usual_ms is not None) if any(usual) else 0.0
    recovered = (
        one.start_s - ends_s
        for one in after
        if one.n_sent
        and one.n_errors == 0
        and one.latency.p99_ms is not None
        and one.latency.p99_ms <= limit_ms
    )
    return Recovery(
        before_p99_ms=merged([one.latency for one in before]).percentile_ms(99),
        during_p99_ms=merged([one.latency for one in during]).percentile_ms(99),
        recovered_after_s=next(recovered, None),
    )


def drift(intervals: Sequence[Stretch], memory: Sequence[tuple[float, float]]) -> Drift:
    """Compares the first tenth of a run with its last."""
    n = max(1, round(len(intervals) * _DRIFT_SHARE))
    first = merged([one.latency for one in intervals[:n]])
    last = merged([one.latency for one in intervals[-n:]])
    k = max(1, round(len(memory) * _DRIFT_SHARE))
    early = sum(n_bytes for _, n_bytes in memory[:k])
    late = sum(n_bytes for _, n_bytes in memory[-k:])
    return Drift(
        p50_ratio=_ratio(last.percentile_ms(50), first.percentile_ms(50)),
        p99_ratio=_ratio(last.percentile_ms(99), first.percentile_ms(99)),
        memory_ratio=_ratio(late, early) if len(memory) > 1 else None,
    )


def _course(name: str, plan: Plan, rates: Rates, rate_per_s: float | None) -> Course:
    whole_s = rates.warmup_s + rates.duration_s
    phases = None if rate_per_s is None else [(whole_s, rate_per_s)]
    clients = rates.clients or 1
    plan = replace(plan, phases=phases, clients=clients, seconds=whole_s)
    load = f"{clients:,} clients" if rate_per_s is None else f"{rate_per_s:,g}/s"
    title = load if name == "run" else f"{name}, {load}"
    return Course(name, plan, rates.warmup_s, rates.duration_s, title)


def _closed_rate(runner: Runner, plan: Plan, found: Findings) -> float:
    """Returns the rate of a short closed loop, where a search starts; 0 if there is none."""
    outcome = _closed_loop(runner, plan, _FIRST_CLIENTS, _FIRST_S)
    if not outcome.trial.n_ok:  # a slow server
        outcome = _closed_loop(runner, plan, 1, plan.timeout_s)
    if runner.was_stopped():
        return 0.0
    if not outcome.trial.n_ok:
        found.errors = outcome.recorder.errors()
        found.invalid_because.append("no request of a short closed loop was answered")
    return float(f"{_START_SHARE * outcome.trial.goodput_per_s:.3g}")


def _closed_loop(runner: Runner, plan: Plan, clients: int, seconds: float) -> Outcome:
    plan = replace(plan, clients=clients, seconds=_FIRST_WARMUP_S + seconds, broken_share=0.0)
    return runner.run(Course("start", plan, _FIRST_WARMUP_S, seconds, "", watched=False))


def _at_capacity(found: Findings) -> Outcome | None:
    """Returns the last trial at the capacity; if there is none, the one with the lowest rate."""
    if found.capacity is None:
        return min(found.outcomes, key=lambda one: one.trial.target_per_s or 0, default=None)
    at = [
        one
        for one in found.outcomes
        if one.trial.target_per_s == found.capacity.rate_per_s and one.trial.objective_met
    ]
    return at[-1]


def _conclude(found: Findings, *, ramp: bool = False) -> Findings:
    """Says why the chosen trial is not to be trusted, if it is not."""
    if found.chosen is None:
        return found
    trial = found.chosen.trial
    lag_ms, share = trial.sender.lag_p99_ms, trial.sender.busiest_core
    allowed_ms = max_lag_ms(trial.latency.p99_ms, ramp=ramp)
    if not trial.n_sent:
        found.invalid_because.append("it ended before anything was measured")
    if lag_ms is not None and lag_ms > allowed_ms:
        found.invalid_because.append(
            f"the sender was late: p99 {lag_ms:.1f} ms, where {allowed_ms:.3g} ms are allowed. "
            "Use --processes, or another machine than the server's"
        )
    if trial.sender.n_held:
        found.invalid_because.append(
            f"{trial.sender.n_held:,} requests waited for one of the sender's connections. "
            "Use --processes, a shorter --timeout, or raise the limit of open files (ulimit -n)"
        )
    if share > MAX_CORE_SHARE:
        found.invalid_because.append(
            f"a sender used {100 * share:.0f}% of a core and may have been the limit itself. "
            "Use --processes"
        )
    return found


def _sender_was_the_limit(outcome: Outcome) -> str | None:
    sender = outcome.trial.sender
    if sender.busiest_core > MAX_CORE_SHARE:
        return f"a sender used {100 * sender.busiest_core:.0f}% of a core. Use --processes"
    allowed_ms = max_lag_ms(outcome.trial.latency.p99_ms, ramp=True)
    if sender.lag_p99_ms is not None and sender.lag_p99_ms > allowed_ms:
        return f"the sender was late: p99 {sender.lag_p99_ms:.1f} ms. Use --processes"
    return None


def _ratio(new: float | None, old: float | None) -> float | None:
    return new / old if new is not None and old else None

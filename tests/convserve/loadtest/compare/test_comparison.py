import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from convserve.loadtest.compare.comparison import Comparison, Measure, compare
from convserve.loadtest.results import Capacity, Result, Stretch
from tests.convserve.loadtest import samples

RATE_PER_S, SECONDS, SERVICE_S = 70.0, 60.0, 0.01


def queue(seed: int, slower: float = 1.0, rate_per_s: float = RATE_PER_S) -> Result:
    """A run of an M/D/1 queue, whose latencies are as autocorrelated as those of a real server."""
    arrivals_s = samples.arrivals(np.random.default_rng(seed), rate_per_s, SECONDS)
    latencies_s = samples.queue_latencies(arrivals_s, np.full(len(arrivals_s), slower * SERVICE_S))
    target: dict[str, Any] = {"target_per_s": rate_per_s}
    return samples.result(
        [samples.trial(samples.stretch("run", 0, SECONDS, latencies_s, **target))],
        samples.split(arrivals_s, latencies_s, SECONDS, 20, **target),
        settings=samples.settings(rate_per_s=rate_per_s),
    )


def failing(shares: list[float], n: int = 200) -> Result:
    """A run with a share of failures in each of its intervals of a second."""
    parts = []
    for at, share in enumerate(shares):
        n_failed = round(n * share)
        fields = samples.stretch("part", at, 1, np.full(n - n_failed, 0.01), n_failed)
        parts.append(Stretch(**fields))
    whole = samples.stretch(
        "run",
        0,
        len(shares),
        np.full(sum(one.n_ok for one in parts), 0.01),
        sum(one.n_errors for one in parts),
        target_per_s=float(n),
    )
    return samples.result([samples.trial(whole)], parts)


def by_name(comparison: Comparison) -> dict[str, Measure]:
    return {one.name: one for one in comparison.measures}


@pytest.fixture(name="same", scope="module")
def _same() -> list[Result]:
    return [queue(seed) for seed in range(30)]


def test_runs_of_the_same_server_rarely_differ(same):
    pairs = list(combinations(same, 2))
    chosen = np.random.default_rng(0).choice(len(pairs), 200, replace=False)

    verdicts = [
        {one.verdict for one in compare([pairs[i][0]], [pairs[i][1]]).measures} for i in chosen
    ]

    n_changed = sum(bool(found & {"better", "worse"}) for found in verdicts)
    assert n_changed <= 0.1 * len(verdicts)
    # An interval that says nothing would never raise an alarm either.
    assert not any("noise not known" in found for found in verdicts)


def test_server_that_is_a_tenth_slower_is_nearly_always_found(same):
    slower = [queue(100 + number, slower=1.1) for number in range(len(same))]

    found = [compare([a], [b]) for a, b in zip(same, slower, strict=True)]

    assert sum(one.worse for one in found) >= 0.9 * len(found)
    p50s = [by_name(one)["p50"] for one in found]
    assert all(one.verdict != "better" for one in p50s)


def test_spike_of_the_same_arrivals_is_no_noise():
    random = np.random.default_rng(0)
    thirds = [samples.arrivals(random, rate_per_s, 20) for rate_per_s in (50, 95, 50)]
    arrivals_s = np.concatenate([20 * i + third for i, third in enumerate(thirds)])

    def spike(seed: int, slower: float = 1.0) -> Result:
        service = np.random.default_rng(seed).gamma(8, 1 / 8, len(arrivals_s))
        latencies_s = samples.queue_latencies(arrivals_s, slower * SERVICE_S * service)
        whole = samples.stretch("run", 0, 60, latencies_s)
        return samples.result(
            [samples.trial(whole)], samples.split(arrivals_s, latencies_s, 60, 20), "spike"
        )

    same = [compare([spike(i)], [spike(100 + i)]) for i in range(20)]
    slower = [compare([spike(i)], [spike(100 + i, slower=1.1)]) for i in range(20)]

    assert sum(one.worse for one in same) <= 2
    assert sum(one.worse for one in slower) >= 18


def test_several_runs_a_side_cover_drift_between_runs():
    # The same server, but each run has a speed of its own, as after a restart.
    speeds = [1.0, 1.06, 0.97, 1.04, 0.96, 1.03, 0.98, 1.05]
    runs = [queue(i, slower=speed, rate_per_s=50.0) for i, speed in enumerate(speeds)]
    slower = [
        queue(i + 9, slower=1.3 * speed, rate_per_s=50.0) for i, speed in enumerate(speeds[4:])
    ]

    drifting = compare(runs[2:3], runs[1:2])
    same = compare(runs[:4], runs[4:])
    changed = compare(runs[:4], slower)

    assert by_name(drifting)["p50"].verdict == "worse"
    assert by_name(same)["p50"].verdict == "within noise"
    assert by_name(changed)["p50"].verdict == "worse"
    assert "Each run is one sample" in same.noise


def test_one_run_a_side_says_that_drift_is_not_covered(same):
    comparison = compare(same[:1], same[1:2])

    assert "20 blocks of 3 s" in comparison.noise
    assert "not drift" in comparison.noise


def test_interval_of_a_percentile_holds_the_ratio(same):
    measure = by_name(compare(same[:1], same[1:2]))["p50"]

    assert measure.a is not None
    assert measure.b is not None
    assert measure.interval is not None
    ratio = measure.b / measure.a
    low, high = measure.interval
    assert measure.ratio == pytest.approx(ratio)
    assert low is not None
    assert high is not None
    assert low < ratio < high


def test_scattered_errors_are_found_and_a_single_burst_is_not():
    none, scattered = failing([0.0] * 20), failing([0.02] * 20)
    burst = failing([0.4] + [0.0] * 19)

    found = by_name(compare([none], [scattered]))["errors"]
    chance = by_name(compare([none], [burst]))["errors"]

    assert (found.verdict, found.words) == ("worse", "more errors")
    assert chance.verdict == "within noise"
    assert by_name(compare([scattered], [none]))["errors"].words == "fewer errors"


def test_server_that_stopped_answering_is_slower_and_gives_less(same):
    dead = samples.unanswered().model_copy(update={"settings": same[0].settings})

    measures = by_name(compare(same[:1], [dead]))

    assert measures["p50"].b is None
    assert measures["p50"].interval == (None, None)
    assert measures["p50"].words == "slower"
    assert measures["right answers"].words == "lower"
    assert by_name(compare([dead], same[:1]))["p50"].words == "faster"
    assert by_name(compare([dead], [dead]))["p50"].verdict == "within noise"


def test_several_runs_without_answers_are_slower_than_several_with(same):
    dead = [samples.unanswered().model_copy(update={"settings": same[0].settings})] * 2

    measures = by_name(compare(same[:2], dead))

    assert measures["p50"].words == "slower"
    assert measures["errors"].words == "more errors"
    assert by_name(compare(dead, same[:2]))["p50"].words == "faster"
    assert by_name(compare(same[:2], [same[2], dead[0]]))["p50"].verdict == "noise not known"


def test_closed_and_open_loops_cannot_be_compared(same):
    closed = same[0].settings.model_copy(
        update={"arrivals": "closed", "clients": 8, "rate_per_s": None}
    )

    comparison = compare(same[:1], [same[0].model_copy(update={"settings": closed})])

    assert [(one.name, one.b) for one in comparison.mismatches] == [
        ("load", "8 clients, closed loop")
    ]
    assert not comparison.comparable


def test_percentile_with_few_requests_above_it_has_no_verdict():
    runs = [failing([0.0] * 20, n=20) for _ in range(2)]

    measures = by_name(compare(runs[:1], runs[1:]))

    assert (measures["p99"].verdict, measures["p99"].words) == (
        "noise not known",
        "too few requests",
    )


def test_interval_that_nothing_bounds_has_no_ends():
    random = np.random.default_rng(0)
    runs = []
    for _ in range(2):
        # All slow requests come in one burst of twenty blocks.
        latencies_s = np.full(2000, 0.01)
        latencies_s[:150] = 1 + random.uniform(size=150)
        arrivals_s = np.linspace(0, 20, 2000, endpoint=False)
        whole = samples.stretch("run", 0, 20, latencies_s, target_per_s=60.0)
        parts = samples.split(arrivals_s, latencies_s, 20, 20)
        runs.append(samples.result([samples.trial(whole)], parts))

    measure = by_name(compare(runs[:1], runs[1:]))["p99"]

    assert measure.verdict == "within noise"
    assert measure.interval == (None, None)


def test_another_rate_makes_latencies_incomparable(same):
    comparison = compare(same[:1], [queue(0, rate_per_s=80.0)])

    assert [(one.name, one.a, one.b) for one in comparison.mismatches] == [
        ("load", "70/s, poisson", "80/s, poisson")
    ]
    assert {one.verdict for one in comparison.measures} == {"not comparable"}
    assert not comparison.comparable
    assert not comparison.worse


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        pytest.param({"body": "multipart"}, "body", id="body"),
        pytest.param({"picture_bytes": 9000}, "pictures", id="pictures"),
        pytest.param({"timeout_s": 1.0}, "timeout", id="timeout"),
        pytest.param({"broken_share": 0.01}, "broken on purpose", id="broken"),
        pytest.param({"objective": "p99<1s"}, "objective", id="objective"),
    ],
)
def test_other_settings_are_named_first_and_do_not_prevent_a_comparison(same, changed, name):
    other = same[1].model_copy(update={"settings": same[1].settings.model_copy(update=changed)})

    comparison = compare(same[:1], [other])

    assert [(one.name, one.prevents) for one in comparison.mismatches] == [(name, False)]
    assert comparison.comparable


def test_another_machine_is_named(same):
    machine = samples.MACHINE.model_copy(update={"n_cores": 8})

    comparison = compare(same[:1], [same[1].model_copy(update={"machine": machine})])

    assert [one.name for one in comparison.mismatches] == ["sender's machine"]


def test_invalid_and_empty_results_are_named(same):
    invalid = same[1].model_copy(
        update={"valid": False, "invalid_because": ["the sender was late"]}
    )

    comparison = compare([invalid], [samples.nothing()])

    assert comparison.invalid == ["A: the sender was late", "B: nothing was measured"]
    assert comparison.measures == []


def test_blocks_leave_out_other_trials_of_a_ramp():
    ramp = samples.ramp()

    comparison = compare([ramp], [ramp])

    assert "5 blocks of 2 s" in comparison.noise


@pytest.mark.parametrize(
    ("brackets", "verdict"),
    [
        pytest.param([(100, 103), (104, 107)], "within noise", id="neighbouring-brackets"),
        pytest.param([(100, 103), (80, 82)], "worse", id="far-below"),
        pytest.param([(100, 103), (120, 123)], "better", id="far-above"),
        pytest.param([(100, None), (80, 82)], "noise not known", id="never-missed"),
    ],
)
def test_capacities_of_two_searches_are_compared_by_their_brackets(brackets, verdict):
    runs = [with_capacity(samples.ramp(), *bracket) for bracket in brackets]

    measures = by_name(compare(runs[:1], runs[1:]))

    assert measures["capacity"].verdict == verdict
    # The trials at capacity had other rates.
    assert measures["p50"].verdict == "not comparable"


def with_capacity(ramp: Result, kept: float, missed: float | None) -> Result:
    assert ramp.summary is not None
    capacity = Capacity(
        rate_per_s=kept, kept_up_to_per_s=kept, missed_from_per_s=missed, statement=""
    )
    summary = ramp.summary.model_copy(update={"target_per_s": kept})
    return ramp.model_copy(update={"capacity": capacity, "summary": summary})


def test_stages_and_cpu_time_need_several_runs_for_a_verdict(same):
    fast = [one.model_copy(update={"stages": samples.stages(9)}) for one in same[:3]]
    slow = [
        one.model_copy(
            update={
                "stages": [
                    stage.model_copy(update={"mean_ms": stage.mean_ms * (1.5 + 0.01 * number)})
                    for stage in one.stages
                ]
            }
        )
        for number, one in enumerate(fast)
    ]

    single = by_name(compare(fast[:1], slow[:1]))["infer, mean"]
    several = by_name(compare(fast, slow))["infer, mean"]

    assert single.verdict == "noise not known"
    assert single.ratio == pytest.approx(1.5)
    assert several.words == "slower"


def test_comparison_needs_results():
    with pytest.raises(ValueError, match="at least one"):
        compare([], [samples.nothing()])


def test_comparison_is_json_even_with_infinite_ends():
    comparison = compare([failing([0.0] * 20)], [samples.unanswered()])

    again = Comparison.model_validate(
        {
            name: value
            for name, value in comparison.model_dump(mode="json").items()
            if name not in ("comparable", "worse")
        }
    )

    assert again == comparison
    assert all(
        math.isfinite(end)
        for one in comparison.measures
        if one.interval
        for end in one.interval
        if end is not None
    )

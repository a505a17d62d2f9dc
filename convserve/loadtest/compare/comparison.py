"""Compares load tests: what changed, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from convserve.loadtest.compare.noise import (
    MIN_BLOCKS,
    Interval,
    common_course,
    design_effect,
    difference,
    share_bounds,
    spread_of_mean,
    spread_of_runs,
    spread_of_share,
)
from convserve.loadtest.histogram import Latencies, merged
from convserve.loadtest.report.server import cpu_ms_per_request, stages_of
from convserve.loadtest.results import Capacity, Result, Settings, Stretch

MAX_BLOCKS: Final = 20
_MIN_ABOVE: Final = 5  # requests slower than a percentile; fewer say nothing about its noise
_SAME_RATE: Final = 0.02  # of two ramps' capacities, so that their latencies can be compared

Bounds = tuple[float | None, float | None]
Unit = Literal["/s", "ms", "share"]
Verdict = Literal["better", "worse", "within noise", "noise not known", "not comparable"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Mismatch(_Part):
    """Something that differs between the two sides besides the server."""

    name: str
    a: str
    b: str
    prevents: bool = Field(description="Whether latency, rate and errors cannot be compared.")


class Measure(_Part):
    """One number of both sides. Of several runs, it is their mean."""

    name: str
    unit: Unit
    a: float | None = Field(description="null: the request at that percentile got no answer.")
    b: float | None
    ratio: float | None = Field(description="B over A.")
    interval: Bounds | None = Field(
        description="99% confidence interval of the ratio, or of B minus A for a share, so that "
        "five of them hold together with 95%. An end is null if it is not known."
    )
    verdict: Verdict
    words: str = Field(description="The verdict in the measure's own words, such as slower.")


class Comparison(_Part):
    """What changed from A to B."""

    n_a: int
    n_b: int
    noise: str = Field(description="What the intervals cover, and what they do not.")
    invalid: list[str] = Field(description="Why a result must not be used.")
    mismatches: list[Mismatch]
    measures: list[Measure]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def comparable(self) -> bool:
        """Whether there is anything that could be compared."""
        return any(one.verdict != "not comparable" for one in self.measures)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def worse(self) -> bool:
        return any(one.verdict == "worse" for one in self.measures)


def compare(a: Sequence[Result], b: Sequence[Result]) -> Comparison:
    """Compares runs of A with runs of B.

    With one run on each side, blocks of time are the samples; otherwise each run is one.

    Raises:
        ValueError: a side is empty.
    """
    if not a or not b:
        raise ValueError("a comparison needs at least one result on each side")

    mismatches = _mismatches(a, b)
    sides = _Sides(a, b, same_load=not any(one.prevents for one in mismatches))
    measures = [
        _goodput(sides),
        *(_percentile(sides, percent) for percent in (50.0, 90.0, 99.0)),
        _errors(sides),
        *_stages(sides),
        *_cpu(sides),
        *_capacity(sides),
    ]
    return Comparison(
        n_a=len(a),
        n_b=len(b),
        noise=_describe_noise(sides),
        invalid=[*_invalid("A", a), *_invalid("B", b)],
        mismatches=mismatches,
        measures=[one for one in measures if one is not None],
    )


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a measure is called, and what is said if B has more of it, or less."""

    name: str
    more: str = "slower"
    less: str = "faster"
    unit: Unit = "ms"
    more_is_worse: bool = True
    of_any_load: bool = False  # can be compared even if the load was another one


class _Side:
    """The runs of one side, and their samples: blocks of time if there is one run on each."""

    def __init__(self, runs: Sequence[Result], *, single: bool) -> None:
        self.runs = runs
        self.summaries = [one.summary for one in runs if one.summary and one.summary.n_sent]
        self.samples = _blocks(runs[0]) if single else self.summaries
        # Decoding them takes most of the time of a comparison.
        self.latencies = [merged([one.latency]) for one in self.samples]


class _Sides:
    def __init__(self, a: Sequence[Result], b: Sequence[Result], *, same_load: bool) -> None:
        self.single = len(a) == len(b) == 1
        self.a, self.b = _Side(a, single=self.single), _Side(b, single=self.single)
        self.same_load = same_load

    @property
    def both(self) -> tuple[_Side, _Side]:
        return self.a, self.b

    @property
    def measured(self) -> bool:
        return bool(self.a.summaries and self.b.summaries)

    def common(self, a: Sequence[float], b: Sequence[float]) -> float:
        """Returns how much the blocks of A and B have in common in a value of each."""
        same_course = len(self.a.samples) == len(self.b.samples) and all(
            math.isclose(a.seconds, b.seconds, rel_tol=0.01)
            for a, b in zip(self.a.samples, self.b.samples, strict=True)
        )
        # The order of runs means nothing.
        return common_course(a, b) if self.single and same_course else 0.0


def _blocks(result: Result) -> list[Stretch]:
    """Returns the summary's intervals in at most `MAX_BLOCKS` blocks of equal time."""
    summary = result.summary
    if summary is None:
        return []
    end_s = summary.start_s + summary.seconds
    mine = [
        one
        for one in result.intervals
        if one.start_s >= summary.start_s - 1e-6 and one.start_s + one.seconds <= end_s + 1e-6
    ]
    n = max(1, math.ceil(len(mine) / MAX_BLOCKS))
    # A rest that is shorter is left out.
    return [_join(mine[at : at + n]) for at in range(0, len(mine) - n + 1, n)]


def _join(parts: Sequence[Stretch]) -> Stretch:
    """Returns stretches that follow each other as one, with what is compared."""
    if len(parts) == 1:
        return parts[0]
    seconds = sum(one.seconds for one in parts)
    n_ok = sum(one.n_ok for one in parts)
    return parts[0].model_copy(
        update={
            "seconds": seconds,
            "goodput_per_s": n_ok / seconds,
            "n_sent": sum(one.n_sent for one in parts),
            "n_ok": n_ok,
            "n_errors": sum(one.n_errors for one in parts),
            "latency": merged([one.latency for one in parts]).summary(),
        }
    )


# The measures

_GOODPUT: Final = _Kind("right answers", "higher", "lower", unit="/s", more_is_worse=False)
_ERRORS: Final = _Kind("errors", "more errors", "fewer errors", unit="share")
_CPU: Final = _Kind("CPU per request", "more", "less")
# Ramps search the rate, so their capacities can be compared where nothing else can.
_CAPACITY: Final = _Kind(
    "capacity", "higher", "lower", unit="/s", more_is_worse=False, of_any_load=True
)


def _goodput(sides: _Sides) -> Measure | None:
    if not sides.measured:
        return None

    def rate(one: Stretch) -> float:
        return one.goodput_per_s

    a, b = (fmean(map(rate, side.summaries)) for side in sides.both)
    samples = [[rate(one) for one in side.samples] for side in sides.both]
    found: Interval | None = None
    if not sides.single and a and b:
        # Relative values, not logarithms: a run may have no right answer at all.
        spread = spread_of_runs(
            *([one / mean for one in side] for side, mean in zip(samples, (a, b), strict=True))
        )
        found = _exponential(spread.around(math.log(b / a))) if spread else None
    elif sides.single and a and min(map(len, samples)) >= MIN_BLOCKS:
        bounds = tuple(
            spread_of_mean(side).around(mean) for side, mean in zip(samples, (a, b), strict=True)
        )
        low, high = difference((a, b), (bounds[0], bounds[1]), sides.common(*samples))
        found = (max(0.0, 1 + low / a), max(0.0, 1 + high / a))
    return _judged(sides, _GOODPUT, (a, b), found)


def _percentile(sides: _Sides, percent: float) -> Measure | None:
    if not sides.measured:
        return None
    kind = _Kind(f"p{percent:g}")
    if not sides.single:
        return _percentile_of_runs(sides, kind, percent)

    whole = [merged([side.summaries[0].latency]) for side in sides.both]
    a, b = (one.percentile_ms(percent) for one in whole)
    n_blocks = min(len(side.samples) for side in sides.both)
    if n_blocks < MIN_BLOCKS or not min(one.n for one in whole):
        return _judged(sides, kind, (a, b), None)

    above = [
        [(one.n_above(limit_ms), one.n) for one in side.latencies]
        for side, limit_ms in zip(sides.both, (a, b), strict=True)
    ]
    if min(sum(part for part, _ in counts) for counts in above) < _MIN_ABOVE:
        measure = _judged(sides, kind, (a, b), None)
        unknown = measure.verdict == "noise not known"
        return measure.model_copy(update={"words": "too few requests"}) if unknown else measure

    shares = [[part / n if n else 0.0 for part, n in counts] for counts in above]
    bounds = [
        _percentile_bounds(one, percent, spread_of_share(counts).margin)
        for one, counts in zip(whole, above, strict=True)
    ]
    logarithms = _logarithm(a), _logarithm(b)
    found = difference(logarithms, (bounds[0], bounds[1]), sides.common(*shares))
    return _judged(sides, kind, (a, b), _exponential(found))


def _percentile_of_runs(sides: _Sides, kind: _Kind, percent: float) -> Measure:
    values = [[one.percentile_ms(percent) for one in side.latencies] for side in sides.both]
    a, b = (None if None in side else fmean(_present(side)) for side in values)
    found: Interval | None = None
    if a is not None and b is not None:
        spread = spread_of_runs(*([math.log(one) for one in _present(side)] for side in values))
        found = _exponential(spread.around(math.log(b / a))) if spread else None
    elif min(map(len, values)) > 1:
        # There is no mean. All runs of one side against none of the other are beyond noise.
        answered = [len(_present(side)) / len(side) for side in values]
        if answered == [1, 0]:
            found = (math.inf, math.inf)
        elif answered == [0, 1]:
            found = (0.0, 0.0)
    return _judged(sides, kind, (a, b), found)


def _percentile_bounds(latencies: Latencies, percent: float, margin: float) -> Interval:
    """Returns the interval of the logarithm of a percentile, from that of its share."""
    low, high = percent - 100 * margin, percent + 100 * margin
    return (
        _logarithm(latencies.percentile_ms(max(0.0, low))),
        math.inf if high >= 100 else _logarithm(latencies.percentile_ms(high)),
    )


def _logarithm(ms: float | None) -> float:
    return math.inf if ms is None else math.log(max(ms, 1e-3))


def _errors(sides: _Sides) -> Measure | None:
    if not sides.measured:
        return None
    totals = [
        (sum(one.n_errors for one in side.summaries), sum(one.n_sent for one in side.summaries))
        for side in sides.both
    ]
    groups = [[(one.n_errors, one.n_sent) for one in side.samples] for side in sides.both]
    shares = [[part / n if n else 0.0 for part, n in counts] for counts in groups]
    # A side without errors has no spread of its own, so both get the wider one.
    effect = max(map(design_effect, groups))

    a, b = (failed / sent for failed, sent in totals)
    bounds = [share_bounds(failed / sent, sent / effect) for failed, sent in totals]
    found = difference((a, b), (bounds[0], bounds[1]), sides.common(*shares))
    return _judged(sides, _ERRORS, (a, b), found)


def _stages(sides: _Sides) -> list[Measure | None]:
    measures = []
    for name in [stage.name for stage in stages_of(sides.a.runs[0])]:
        a, b = (
            [stage.mean_ms for one in side.runs for stage in one.stages if stage.name == name]
            for side in sides.both
        )
        measures.append(_of_runs(sides, _Kind(f"{name}, mean"), a, b))
    return measures


def _cpu(sides: _Sides) -> list[Measure | None]:
    a, b = (_present(map(cpu_ms_per_request, side.runs)) for side in sides.both)
    return [_of_runs(sides, _CPU, a, b)]


def _of_runs(sides: _Sides, kind: _Kind, a: Sequence[float], b: Sequence[float]) -> Measure | None:
    """Compares a time that a result has only once."""
    if not a or not b:
        return None
    means, found = (fmean(a), fmean(b)), None
    if min(*a, *b) > 0:
        spread = spread_of_runs([math.log(one) for one in a], [math.log(one) for one in b])
        found = _exponential(spread.around(math.log(means[1] / means[0]))) if spread else None
    return _judged(sides, kind, means, found)


def _capacity(sides: _Sides) -> list[Measure | None]:
    a, b = ([one.capacity for one in side.runs if one.capacity] for side in sides.both)
    rates = [[one.rate_per_s for one in side] for side in (a, b)]
    if not all(rates) or not all(map(min, rates)):
        return []
    means = fmean(rates[0]), fmean(rates[1])
    if sides.single:
        found = _bracket(a[0], b[0])
    else:
        spread = spread_of_runs(*([math.log(rate) for rate in side] for side in rates))
        found = _exponential(spread.around(math.log(means[1] / means[0]))) if spread else None
    return [_judged(sides, _CAPACITY, means, found)]


def _bracket(a: Capacity, b: Capacity) -> Interval | None:
    """Returns the ratios that the brackets of two searches allow, and one bracket more."""
    low_a, high_a = a.kept_up_to_per_s, a.missed_from_per_s
    low_b, high_b = b.kept_up_to_per_s, b.missed_from_per_s
    if high_a is None or high_b is None or not min(low_a, low_b):
        return None
    width = max(high_a / low_a, high_b / low_b)
    return low_b / high_a / width, high_b / low_a * width


def _judged(
    sides: _Sides,
    kind: _Kind,
    values: tuple[float | None, float | None],
    found: Interval | None,
) -> Measure:
    """Returns a measure with its verdict; the ends of `found` may be infinite."""
    a, b = values
    unchanged = 0.0 if kind.unit == "share" else 1.0
    more = found is not None and found[0] > unchanged
    less = found is not None and found[1] < unchanged

    verdict: Verdict = "within noise"
    if not sides.same_load and not kind.of_any_load:
        verdict = "not comparable"
    elif found is None:
        verdict = "noise not known"
    elif more or less:
        verdict = "worse" if more == kind.more_is_worse else "better"
    changed = verdict in ("better", "worse")
    return Measure(
        name=kind.name,
        unit=kind.unit,
        a=a,
        b=b,
        ratio=b / a if a and b is not None else None,
        interval=found and (_known(found[0], kind), _known(found[1], kind)),
        verdict=verdict,
        words=(kind.more if more else kind.less) if changed else verdict,
    )


def _exponential(found: Interval) -> Interval:
    return math.exp(found[0]), math.exp(found[1])


def _known(end: float, kind: _Kind) -> float | None:
    # A ratio of 0 is the lower end of an interval that has none.
    return end if math.isfinite(end) and (kind.unit == "share" or end > 0) else None


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


# What stands in the way


def _mismatches(a: Sequence[Result], b: Sequence[Result]) -> list[Mismatch]:
    found = []
    for name, prevents, text in _FACTS:
        texts = [sorted({text(one) for one in side} - {""}) for side in (a, b)]
        if texts[0] != texts[1] or len(texts[0]) > 1:
            shown = [", ".join(side) or "not known" for side in texts]
            found.append(Mismatch(name=name, a=shown[0], b=shown[1], prevents=prevents))
    if not any(one.prevents for one in found) and (rates := _ramp_rates(a, b)):
        found.append(rates)
    return found


def _ramp_rates(a: Sequence[Result], b: Sequence[Result]) -> Mismatch | None:
    """Returns the rates at which two ramps' latencies were measured, if they differ."""
    if a[0].settings.profile != "ramp":
        return None
    rates = [
        [one.summary.target_per_s or 0.0 for one in side if one.summary is not None]
        for side in (a, b)
    ]
    every = rates[0] + rates[1]
    if not every or max(every) <= (1 + _SAME_RATE) * min(every):
        return None
    shown = [", ".join(f"{rate:g}/s" for rate in sorted(set(side))) or "none" for side in rates]
    return Mismatch(name="rate at capacity", a=shown[0], b=shown[1], prevents=True)


def _load(settings: Settings) -> str:
    if settings.arrivals == "closed":
        return f"{settings.clients or 0:,} clients, closed loop"
    rate = "rate searched" if settings.rate_per_s is None else f"{settings.rate_per_s:,g}/s"
    if settings.profile == "ramp":
        rate = "rate searched"  # the given one is where the search starts
    peak = "" if settings.peak_per_s is None else f", peak {settings.peak_per_s:,g}/s"
    return f"{rate}{peak}, {settings.arrivals}"


def _machine(result: Result) -> str:
    machine = result.machine
    return f"{machine.processor}, {machine.n_cores} cores, {machine.system}"


def _pictures(settings: Settings) -> str:
    each = settings.pictures_per_request
    text = f"{settings.n_pictures:,}, median {settings.picture_bytes:,} bytes"
    return text + (f", {each} in a request" if each > 1 else "")


# Name, whether a difference prevents a comparison, and the value; an empty one is not known.
_FACTS: Final[tuple[tuple[str, bool, Callable[[Result], str]], ...]] = (
    ("profile", True, lambda one: one.settings.profile),
    ("load", True, lambda one: _load(one.settings)),
    ("body", False, lambda one: f"{one.settings.body} to {one.settings.path}"),
    ("pictures", False, lambda one: _pictures(one.settings)),
    ("broken on purpose", False, lambda one: f"{100 * one.settings.broken_share:g}%"),
    ("measured time", False, lambda one: f"{one.summary.seconds:.0f} s" if one.summary else ""),
    ("timeout", False, lambda one: f"{one.settings.timeout_s:g} s"),
    ("objective", False, lambda one: one.settings.objective),
    ("models", False, lambda one: ", ".join(one.server.models)),
    ("sender's machine", False, _machine),
)


def _invalid(side: str, results: Sequence[Result]) -> list[str]:
    reasons = []
    for number, one in enumerate(results, 1):
        name = side if len(results) == 1 else f"{side}, run {number}"
        if not one.valid:
            reasons.append(f"{name}: {'; '.join(one.invalid_because) or 'marked as invalid'}")
        elif one.summary is None or not one.summary.n_sent:
            reasons.append(f"{name}: nothing was measured")
    return reasons


def _describe_noise(sides: _Sides) -> str:
    if not sides.single:
        n_a, n_b = len(sides.a.runs), len(sides.b.runs)
        text = (
            f"Each run is one sample, {n_a} of A and {n_b} of B. This covers chance within a run "
            "and drift between runs."
        )
        if min(n_a, n_b) < 2:
            text += " The side with one run is taken to vary as the other does."
        if max(n_a, n_b) < 3:
            text += " Two runs give wide intervals; four or more are better."
        return text

    n = min(len(sides.a.samples), len(sides.b.samples))
    if not n:
        return "There are no intervals, so the noise is not known."
    seconds = sides.a.samples[0].seconds
    text = (
        f"One run each, in {n} blocks of {seconds:g} s. This covers chance within a run, not drift "
        "between runs (a restart, other work on the machine, its temperature). To cover it, give "
        "folders with several runs. Stages and CPU time are known per run only."
    )
    if any(one.capacity for side in sides.both for one in side.runs):
        text += (
            " The interval of a capacity is what the brackets of both searches allow, and one "
            "bracket more, by which searches of the same server differ."
        )
    return text

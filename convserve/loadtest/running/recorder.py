"""Turns the rows of senders into the numbers of one trial, as they arrive."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from convserve.loadtest.histogram import Latencies
from convserve.loadtest.results import ErrorCount, Sender, Stage, Stretch
from convserve.loadtest.running.objective import Objective
from convserve.loadtest.sending.fleet import Fleet
from convserve.loadtest.sending.rows import NONE, WITH_BROKEN_PICTURE, Rows, latencies_s

MAX_LAG_MS = 5.0
RAMP_LAG_SHARE = 0.1  # of a trial's p99 that lag may be in a ramp
MAX_CORE_SHARE = 0.9  # of a sender's CPU time in the time it ran

_TOO_MANY = 429
_REFUSALS = (_TOO_MANY, 503)
_MAX_EXAMPLES = 5
_RECENT_S = 5  # what a live display shows


def max_lag_ms(p99_ms: float | None, *, ramp: bool) -> float:
    """Returns how late a sender may be at p99.

    On the server's own machine, a server at its limit delays the sender too. In a ramp that is allowed
    while lag is a small part of the latency: it can only make the capacity smaller.
    """
    if not ramp:
        return MAX_LAG_MS
    return max(MAX_LAG_MS, RAMP_LAG_SHARE * (math.inf if p99_ms is None else p99_ms))


@dataclass(slots=True)
class Tally:
    """Requests of one stretch of time."""

    latencies: Latencies = field(default_factory=Latencies)
    n_sent: int = 0
    n_ok: int = 0
    n_refused: int = 0
    n_errors: int = 0

    def stretch(
        self, name: str, start_s: float, seconds: float, target_per_s: float | None
    ) -> Stretch:
        return Stretch(
            name=name,
            start_s=start_s,
            seconds=seconds,
            target_per_s=target_per_s,
            sent_per_s=self.n_sent / seconds,
            goodput_per_s=self.n_ok / seconds,
            n_sent=self.n_sent,
            n_ok=self.n_ok,
            n_refused=self.n_refused,
            n_errors=self.n_errors,
            latency=self.latencies.summary(),
        )


class AnswerCheck:
    """Compares first classes: of one picture over time, and with what the user expects.

    It outlives a trial: a picture has one answer for the whole load test.
    """

    def __init__(
        self,
        names: Sequence[Sequence[str]],
        broken_names: Sequence[Sequence[str]],
        expected: Mapping[str, str],
    ) -> None:
        """Takes the names of the pictures in each good and each broken request.

        A broken picture has the name "": it must have failed alone.
        """
        self._names = {False: names, True: broken_names}
        self.n_pictures = len(names[0])  # in each request
        self._expected = expected
        self._first: dict[str, str] = {}
        self._right: set[tuple[bool, int, tuple[str, ...]]] = set()
        self.n_answers = self.n_changed = self.n_unexpected = 0
        self.examples: list[str] = []

    def right(self, answer: tuple[str, ...], item: int, count: int, *, broken: bool) -> bool:
        """Counts `count` equal answers to a request; returns whether they are right."""
        names = self._names[broken][item]
        self.n_answers += count * len(names)
        if (broken, item, answer) in self._right:
            return True

        right = [self._check(name, found, count) for name, found in zip(names, answer, strict=True)]
        if all(right):
            self._right.add((broken, item, answer))
        return all(right)

    def _check(self, name: str, found: str, count: int) -> bool:
        failed = found.startswith("!")
        if failed or not name:
            if failed and name:
                self._example(f"{name} failed: {found[1:]}")
            return failed and not name

        first = self._first.setdefault(name, found)
        expected = self._expected.get(name, found)
        if first != found:
            self.n_changed += count
            self._example(f"{name}: {found!r}, earlier {first!r}")
        if expected != found:
            self.n_unexpected += count
            self._example(f"{name}: {found!r}, expected {expected!r}")
        return first == found == expected

    def _example(self, text: str) -> None:
        if len(self.examples) < _MAX_EXAMPLES and text not in self.examples:
            self.examples.append(text)


@dataclass(frozen=True, slots=True)
class Window:
    """The measured time of a trial.

    Attributes:
        warmup_s: requests meant for the time before are sent, but not counted.
        seconds: after the warm-up.
        interval_s: length of each part.
        targets: (end of the phase, rate), in seconds from the start; empty if closed.
        offset_s: from the measured time of the load test's first trial.
    """

    warmup_s: float
    seconds: float
    interval_s: float
    targets: Sequence[tuple[float, float]] = ()
    offset_s: float = 0.0


class Recorder:
    """The numbers of one trial."""

    def __init__(self, fleet: Fleet, check: AnswerCheck, window: Window) -> None:
        self._fleet, self._check = fleet, check
        self._window = window
        self._warmup_s, self._seconds = window.warmup_s, window.seconds
        self.interval_s = window.interval_s

        self.whole = Tally()
        self.intervals: list[Stretch] = []
        self._open: dict[int, Tally] = {}
        self._lags = Latencies()
        self._stages: dict[str, Latencies] = {}
        self._ends: Counter[tuple[str, int | None, bool]] = Counter()
        self._examples: dict[tuple[str, int | None, bool], str] = {}
        self.n_broken = self.n_broken_accepted = 0
        self._cpu: dict[int, list[tuple[float, float]]] = {}

    def add(self, rows: Rows) -> None:
        if not len(rows):
            return

        at_s = rows["intended_s"] - self._warmup_s
        measured = at_s >= 0
        right = self._right(rows, measured)
        rows, at_s, right = rows[measured], at_s[measured], right[measured]

        self._lags.add(np.maximum(rows["lag_s"].astype(np.float64), 0.0))
        self._add_stages(rows)
        self._tally(self.whole, rows, right)
        intervals = (at_s // self.interval_s).astype(int)
        for number in np.unique(intervals).tolist():
            mine = intervals == number
            self._tally(self._open.setdefault(number, Tally()), rows[mine], right[mine])

    def sample_cpu(self) -> None:
        """Notes how much CPU time the senders have used so far."""
        for number, counts in enumerate(self._fleet.counts):
            if self._warmup_s <= counts.wall_s <= self._warmup_s + self._seconds + 0.5:
                self._cpu.setdefault(number, []).append((counts.wall_s, counts.cpu_s))

    def recent(self, now_s: float) -> Iterator[Tally]:
        """Yields the tallies of the last seconds, for a live display."""
        newest = int((now_s - self._warmup_s) // self.interval_s)
        n = max(1, math.ceil(_RECENT_S / self.interval_s))
        yield from (self._open[one] for one in range(newest - n, newest + 1) if one in self._open)

    def close_before(self, at_s: float) -> None:
        """Closes the intervals that ended before `at_s`: no row of theirs comes any more."""
        last = math.ceil(self._seconds / self.interval_s)
        while (number := len(self.intervals)) < last:
            start_s = number * self.interval_s
            seconds = min(self.interval_s, self._seconds - start_s)
            if self._warmup_s + start_s + seconds > at_s:
                return
            tally = self._open.pop(number, None) or Tally()
            target = self._target(self._warmup_s + start_s + seconds / 2)
            at = self._window.offset_s + start_s
            self.intervals.append(tally.stretch(f"{at:g} s", at, seconds, target))

    def cut(self, seconds: float) -> None:
        """Ends the measured time early."""
        self._seconds = min(self._seconds, max(seconds - self._warmup_s, 1e-3))

    def stretch(self, name: str, target_per_s: float | None) -> Stretch:
        return self.whole.stretch(name, self._window.offset_s, self._seconds, target_per_s)

    def misses(self, objective: Objective) -> list[str]:
        return objective.misses(self.whole.latencies, self.whole.n_errors, self.whole.n_sent)

    def sender(self) -> Sender:
        closed = not self._window.targets
        shares = [
            (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])
            for samples in self._cpu.values()
            if samples[-1][0] > samples[0][0]
        ]
        used_s = sum(samples[-1][1] - samples[0][1] for samples in self._cpu.values())
        return Sender(
            lag_p50_ms=None if closed else self._lags.percentile_ms(50),
            lag_p99_ms=None if closed else self._lags.percentile_ms(99),
            lag_max_ms=None if closed else self._lags.percentile_ms(100),
            busiest_core=max(shares, default=0.0),
            cpu_us_per_request=1e6 * used_s / max(1, self.whole.n_sent),
            n_reconnects=sum(counts.n_reconnects for counts in self._fleet.counts),
            n_held=sum(counts.n_held for counts in self._fleet.counts),
        )

    def errors(self) -> list[ErrorCount]:
        return [
            ErrorCount(code=key[0], status=key[1], broken=key[2], n=n, example=self._examples[key])
            for key, n in self._ends.most_common()
        ]

    def top_errors(self, n: int) -> list[tuple[str, int]]:
        """Returns the most frequent codes of what went wrong, with their numbers."""
        found: Counter[str] = Counter()
        for (code, _, broken), count in self._ends.items():
            if not broken:
                found[code] += count
        return found.most_common(n)

    def stages(self) -> list[Stage]:
        return [
            Stage(
                name=name,
                n=latencies.n,
                mean_ms=latencies.mean_ms or 0.0,
                p50_ms=latencies.percentile_ms(50) or 0.0,
                p99_ms=latencies.percentile_ms(99) or 0.0,
            )
            for name, latencies in self._stages.items()
        ]

    def _right(self, rows: Rows, measured: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Returns which answers are right; counts what is wrong with the others."""
        broken = (rows["flags"] & WITH_BROKEN_PICTURE) != 0
        status = rows["status"]
        accepted: NDArray[np.bool_] = (status >= 200) & (status < 300) & (rows["end"] == NONE)
        rejected = broken & (status >= 400) & (status < 500) & (status != _TOO_MANY)
        right: NDArray[np.bool_] = (accepted & ~broken) | rejected

        # Many rows, few different answers.
        read = accepted & (rows["answer"] != NONE)
        triples = np.stack([broken[read], rows["item"][read], rows["answer"][read]], axis=1)
        found, places, counts = np.unique(triples, axis=0, return_inverse=True, return_counts=True)
        verdicts = [
            self._check.right(self._fleet.answers[answer], item, count, broken=bool(of_broken))
            for (of_broken, item, answer), count in zip(
                found.tolist(), counts.tolist(), strict=True
            )
        ]
        if verdicts:
            right[read] = np.array(verdicts)[places.reshape(-1)]

        wrong = accepted & ~right & measured
        self.n_broken += int((broken & measured).sum())
        self.n_broken_accepted += self._count_broken(rows, wrong & broken)
        self._count("wrong_answer", 200, wrong & ~broken, broken=False)
        if self._check.n_pictures > 1:
            # The intact pictures beside the broken one have lost their answers.
            right &= ~rejected
            self._count("neighbours_refused", 200, rejected & measured, broken=True)

        for number in np.unique(rows["end"]).tolist():
            if number == NONE:
                continue
            code, at_status, example = self._fleet.ends[number]
            for of_broken in (False, True):
                these = (rows["end"] == number) & measured & (broken == of_broken)
                self._count(code, at_status, these, broken=of_broken, example=example)
        return right

    def _count_broken(self, rows: Rows, wrong: NDArray[np.bool_]) -> int:
        """Counts wrong answers to requests with a broken picture; returns how many accepted it."""
        refused = [answer[0].startswith("!") for answer in self._fleet.answers]
        neighbours = wrong & np.isin(rows["answer"], np.flatnonzero(refused))
        accepted = wrong & ~neighbours
        self._count("wrong_answer", 200, neighbours, broken=True)
        self._count("broken_accepted", 200, accepted, broken=True)
        return int(accepted.sum())

    def _count(
        self, code: str, status: int, which: NDArray[np.bool_], *, broken: bool, example: str = ""
    ) -> None:
        n = int(which.sum())
        if n:
            key = (code, status if status > 0 else None, broken)
            self._ends[key] += n
            self._examples.setdefault(key, example)

    def _tally(self, tally: Tally, rows: Rows, right: NDArray[np.bool_]) -> None:
        broken = (rows["flags"] & WITH_BROKEN_PICTURE) != 0
        status = rows["status"]
        tally.n_sent += len(rows)
        tally.n_ok += int((right & ~broken).sum())
        tally.n_refused += int(np.isin(status, _REFUSALS).sum())
        tally.n_errors += int((~right).sum())
        # A fast refusal or error must not look like a fast answer.
        counted = ~broken & ((status <= 0) | ((status >= 200) & (status < 300)))
        tally.latencies.add(latencies_s(rows[counted]))

    def _add_stages(self, rows: Rows) -> None:
        for number, name in enumerate(self._fleet.stages[: rows["stages"].shape[1]]):
            durations_ms = rows["stages"][:, number].astype(np.float64)
            durations_ms = durations_ms[~np.isnan(durations_ms)]
            if len(durations_ms):
                self._stages.setdefault(name, Latencies()).add(durations_ms / 1e3)

    def _target(self, at_s: float) -> float | None:
        return next((rate for end_s, rate in self._window.targets if at_s < end_s), None)

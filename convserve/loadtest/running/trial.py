"""Runs one trial: starts the senders, records what they report, shows the progress."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from convserve.loadtest.histogram import Latencies
from convserve.loadtest.results import Trial
from convserve.loadtest.running.objective import Objective
from convserve.loadtest.running.progress import Progress, Snapshot
from convserve.loadtest.running.recorder import AnswerCheck, Recorder, Window
from convserve.loadtest.running.server import Observer
from convserve.loadtest.sending.fleet import Fleet, SenderFailed
from convserve.loadtest.sending.plan import Plan

_MAX_INTERVALS: Final = 300
_TICK_S: Final = 0.25
_RATE_S: Final = 2.0  # that the live rate is taken over
_MEMORY_EVERY_S: Final = 10.0  # a scrape costs the server a few ms


@dataclass(frozen=True, slots=True)
class Course:
    """One trial to run: its requests, and how long they are measured after the warm-up."""

    name: str
    plan: Plan
    warmup_s: float
    seconds: float
    title: str  # for the progress
    watched: bool = True  # False: no memory samples, and no progress


@dataclass(frozen=True, slots=True)
class Outcome:
    """A trial and everything that is kept of it."""

    trial: Trial
    recorder: Recorder


@dataclass(slots=True)
class Runner:
    """Runs trials one after the other.

    Attributes:
        memory: (seconds since the first trial, bytes) of the server, if it tells.
        failure: why a sender ended before its run did; None if none has.
    """

    check: AnswerCheck
    objective: Objective
    n_processes: int
    folder: Path
    progress: Progress
    observer: Observer
    memory: list[tuple[float, float]] = field(default_factory=list)
    failure: str | None = None
    _stopped: bool = False
    _fleet: Fleet | None = None
    _first_s: float | None = None  # when the measured time of the first trial began

    def was_stopped(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        """Ends the running trial early, and starts no other."""
        self._stopped = True
        if self._fleet is not None:
            self._fleet.stop()

    def run(self, course: Course) -> Outcome:
        """Runs a trial. If a sender fails in its midst, the outcome is what was seen until then.

        Raises:
            SenderFailed: a sender did not start.
        """
        fleet = self._fleet = Fleet(course.plan, self.n_processes, self.folder)
        try:
            if self._stopped:
                fleet.stop()
            return self._run(course, fleet)
        finally:
            self._fleet = None
            fleet.kill()

    def _run(self, course: Course, fleet: Fleet) -> Outcome:
        fleet.begin()
        measured_s = fleet.start_s + course.warmup_s
        if self._first_s is None and course.watched:
            self._first_s = measured_s
        offset_s = measured_s - (self._first_s or measured_s)

        interval_s = max(1.0, course.seconds / _MAX_INTERVALS)
        targets = _targets(course.plan)
        window = Window(course.warmup_s, course.seconds, interval_s, targets, offset_s)
        recorder = Recorder(fleet, self.check, window)
        memory = _MemorySamples(self.observer) if course.watched else None
        sent = deque([(0.0, 0)], maxlen=round(_RATE_S / _TICK_S))
        try:
            while not fleet.ended:
                for rows in fleet.collect(_TICK_S):
                    recorder.add(rows)
                now_s = time.monotonic() - fleet.start_s
                recorder.sample_cpu()
                recorder.close_before(now_s - course.plan.timeout_s - 1.0)
                sent.append((now_s, sum(counts.n_sent for counts in fleet.counts)))
                if course.watched:
                    (from_s, n_before), (to_s, n_now) = sent[0], sent[-1]
                    sent_per_s = (n_now - n_before) / (to_s - from_s)
                    self.progress.update(_snapshot(course, fleet, recorder, now_s, sent_per_s))
                if self._stopped:
                    recorder.cut(now_s)
        except SenderFailed as error:
            self.failure, self._stopped = str(error), True
            recorder.cut(time.monotonic() - fleet.start_s)
        finally:
            if memory is not None:
                first_s = self._first_s or 0.0
                self.memory += [(max(0.0, at_s - first_s), n) for at_s, n in memory.end()]

        recorder.close_before(math.inf)
        return Outcome(self._judge(course, recorder), recorder)

    def _judge(self, course: Course, recorder: Recorder) -> Trial:
        phases = course.plan.phases
        misses = recorder.misses(self.objective)
        stretch = recorder.stretch(
            course.name, phases[0][1] if phases and len(phases) == 1 else None
        )
        return Trial(
            **dict(stretch),
            objective_met=not misses and bool(recorder.whole.n_sent),
            misses=misses,
            sender=recorder.sender(),
        )


class _MemorySamples:
    """Asks for the server's memory now and then, in a thread: the answer may take long."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._ended = threading.Event()
        self._samples: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> list[tuple[float, float]]:
        self._ended.set()
        self._thread.join()
        return self._samples

    def _run(self) -> None:
        while True:
            found = self._observer.scrape().memory_bytes
            if found is not None:
                self._samples.append((time.monotonic(), found))
            # A server without this metric is asked once.
            if found is None or self._ended.wait(_MEMORY_EVERY_S):
                return


def _targets(plan: Plan) -> list[tuple[float, float]]:
    """Returns the end of each phase, in seconds from the start, and its rate."""
    ends: list[tuple[float, float]] = []
    for seconds, rate_per_s in plan.phases or ():
        ends.append((seconds + (ends[-1][0] if ends else 0.0), rate_per_s))
    return ends


def _snapshot(
    course: Course, fleet: Fleet, recorder: Recorder, now_s: float, sent_per_s: float
) -> Snapshot:
    tallies = list(recorder.recent(now_s))
    latencies = Latencies()
    for tally in tallies:
        latencies.include(tally.latencies)
    seconds = max(1e-3, min(recorder.interval_s * len(tallies), now_s - course.warmup_s))
    return Snapshot(
        elapsed_s=now_s,
        total_s=course.plan.seconds,
        phase="warm-up" if now_s < course.warmup_s else course.title,
        # Not from the tallies, which know a request only when it has ended.
        sent_per_s=sent_per_s,
        goodput_per_s=sum(tally.n_ok for tally in tallies) / seconds,
        p50_ms=latencies.percentile_ms(50),
        p99_ms=latencies.percentile_ms(99),
        errors=dict(recorder.top_errors(3)),
        in_flight=sum(counts.in_flight for counts in fleet.counts),
    )

"""Measures what a picture costs by batch size, lanes and threads, the way the service is used.

A lane prepares pictures from their bytes and then runs them, in turns. That matters: preparing pushes
the network's weights out of the cache, and a batch brings them back once for all of its pictures. A
loop of bare runs, which is measured beside it, keeps them there and hides most of what batches save.

Configurations take turns in short slices, round after round: whatever else happens on the machine
then happens to all of them, and a round compares them fairly even where rounds differ.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

import numpy as np

from contract.preprocessing import Tensor
from service.models.engine import Batch, Engine, Run
from service.system.threads import DaemonThread

ROUNDS: Final = 9
MIN_ROUNDS: Final = 5  # however slow runs are: with fewer, noise alone often looks like a gain
_BARE_SHARE: Final = 0.25  # of a slice; bare runs are steadier
_STEP: Final = 7  # pictures by which rounds begin further on


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to run a version: runs at the same time, threads inside each, pictures in each."""

    lanes: int
    threads: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What one slice showed of one configuration.

    Attributes:
        images_per_s: of all lanes together, prepared and run.
        batch_ms: wall time from the first picture's bytes to the batch's answers; the median.
        cpu_ms: CPU time of the process for one picture.
        bare_images_per_s: of all lanes together, one prepared batch run over and over.
    """

    images_per_s: float
    batch_ms: float
    cpu_ms: float
    bare_images_per_s: float


Samples = dict[Configuration, list[Sample]]
"""One sample a round; after an interruption the last ones may be missing."""


def configurations(
    default: Configuration, largest_batch: int, lane_threads: Sequence[tuple[int, int]]
) -> list[Configuration]:
    """Returns what to measure: powers of two and the largest batch, the default's lanes first.

    Args:
        default: what the service does where nothing is set; among the results.
        largest_batch: 1 where the graph takes one picture a run.
        lane_threads: lanes and threads that belong together.
    """
    sizes = {2**power for power in range(largest_batch.bit_length())}
    sizes |= {largest_batch, default.batch_size}
    ours = (default.lanes, default.threads)
    pairs = [ours, *sorted(set(lane_threads) - {ours})]
    return [Configuration(*pair, size) for pair in pairs for size in sorted(sizes)]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many rounds of which slices; `expected_s` is how long that takes."""

    rounds: int
    slice_s: float
    expected_s: float


def schedule(batches_s: Mapping[Configuration, float], seconds: float) -> Schedule:
    """Divides the time; a slice has one batch at least, so slow networks get fewer rounds.

    Args:
        batches_s: seconds of one batch, prepared and run, of every configuration.
        seconds: to spend; exceeded where `MIN_ROUNDS` take longer.
    """
    slice_s = seconds / (ROUNDS * len(batches_s))
    # A batch that is longer than its slice is run once prepared and once, a little shorter, bare.
    round_s = sum(
        max((1 - _BARE_SHARE) * slice_s, batch_s) + max(_BARE_SHARE * slice_s, batch_s)
        for batch_s in batches_s.values()
    )
    rounds = max(MIN_ROUNDS, min(ROUNDS, int(seconds / round_s)))
    return Schedule(rounds, slice_s, rounds * round_s)


class Bench:
    """Lanes that prepare and run pictures without a server.

    Not for use by several threads; `close` ends its own.
    """

    def __init__(
        self,
        engines: Mapping[int, Engine],
        prepare: Callable[[bytes], Tensor],
        pictures: Sequence[bytes],
        *,
        prepare_threads: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        """Prepares; nothing runs yet.

        Args:
            engines: the version, by threads inside one run.
            prepare: from an image file to one row of the graph's input; on any thread.
            pictures: image files that `prepare` accepts, in random order; at least one.
            prepare_threads: prepare apart from the lanes, as the service does for a GPU; 0 for
                lanes that prepare what they run.
            clock: monotonic seconds.
            cpu_clock: CPU seconds of this process.
        """
        self._engines = engines
        self._prepare = prepare
        self._pictures = pictures
        self._apart = ThreadPoolExecutor(prepare_threads) if prepare_threads else None
        self._ahead = 2 * prepare_threads  # rows that are always being prepared
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._stopped = threading.Event()
        self._lanes: list[DaemonThread] = []  # kept: an engine may have buffers for each thread

    def close(self) -> None:
        self._stopped.set()
        for lane in self._lanes:
            lane.close()
        if self._apart is not None:
            self._apart.shutdown(cancel_futures=True)

    def warm_up(self, chosen: Sequence[Configuration]) -> dict[Configuration, float]:
        """Runs one batch of each, since the first of a size may allocate; returns its seconds."""
        for configuration in chosen:
            self._slice(configuration, 0, 0.0)
        return {one: self._slice(one, 0, 0.0)[1] for one in chosen}

    def rounds(
        self, chosen: Sequence[Configuration], plan: Schedule
    ) -> Iterator[tuple[Configuration, Sample]]:
        """Measures all configurations in turns, and again, as often as planned."""
        for number in range(plan.rounds):
            for configuration in chosen:
                yield configuration, self._sample(configuration, number, plan.slice_s)

    def _sample(self, configuration: Configuration, number: int, slice_s: float) -> Sample:
        before_s = self._cpu_clock()
        rate, batch_s, n_images = self._slice(configuration, number, (1 - _BARE_SHARE) * slice_s)
        cpu_s = self._cpu_clock() - before_s

        bare_rate, *_ = self._slice(configuration, number, _BARE_SHARE * slice_s, bare=True)
        return Sample(rate, 1e3 * batch_s, 1e3 * cpu_s / n_images, bare_rate)

    def _slice(
        self, configuration: Configuration, number: int, slice_s: float, *, bare: bool = False
    ) -> tuple[float, float, int]:
        """Returns images/s of all lanes, the median seconds of a batch, and the number of images."""
        while len(self._lanes) < configuration.lanes:
            self._lanes.append(DaemonThread(f"tune-{len(self._lanes)}"))
        size = configuration.batch_size
        engine = self._engines[configuration.threads]

        runs = [Run() for _ in range(configuration.lanes)]  # one a lane, to be interrupted by

        def lane(index: int) -> list[float]:
            # Every configuration has the same pictures in the same round.
            start = number * _STEP + index * len(self._pictures) // configuration.lanes
            batches = self._batches(start, size)
            if bare:
                batches = _repeated(next(batches))
            return self._repeat(lambda batch: engine.run(batch, runs[index]), batches, slice_s)

        lanes = [
            thread.submit(partial(lane, index))
            for index, thread in enumerate(self._lanes[: configuration.lanes])
        ]
        try:
            done, _ = wait(lanes, return_when=FIRST_EXCEPTION)
            times = [one.result() for one in done]
        except BaseException:
            self._stopped.set()
            for run in runs:
                run.interrupt()
            wait(lanes)  # a process that exits while a thread is in native code is aborted
            raise

        # Each lane by its own time: the last one may have ended a batch later than the others.
        rate = sum(size * len(batches_s) / sum(batches_s) for batches_s in times)
        every = [batch_s for batches_s in times for batch_s in batches_s]
        return rate, median(every), size * len(every)

    def _repeat(
        self, run: Callable[[Batch], object], batches: Iterator[Batch], slice_s: float
    ) -> list[float]:
        """Runs batches for a slice, to the nearest whole one; returns the seconds of each."""
        took: list[float] = []
        began_s = before_s = self._clock()
        while not self._stopped.is_set():
            run(next(batches))
            now_s = self._clock()
            took.append(now_s - before_s)
            if now_s - began_s + took[-1] / 2 >= slice_s:
                break
            before_s = now_s
        return took

    def _batches(self, start: int, size: int) -> Iterator[Batch]:
        rows = self._rows(start)
        while True:
            if size == 1:
                yield next(rows)[None]  # as in the service, one picture needs no copy
            else:
                yield np.stack([next(rows) for _ in range(size)])

    def _rows(self, start: int) -> Iterator[Tensor]:
        count = len(self._pictures)
        ahead: deque[Future[Tensor]] = deque()
        while True:
            if self._apart is None:
                yield self._prepare(self._pictures[start % count])
                start += 1
                continue
            while len(ahead) <= self._ahead:
                ahead.append(self._apart.submit(self._prepare, self._pictures[start % count]))
                start += 1
            yield ahead.popleft().result()


def _repeated(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch

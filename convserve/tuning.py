"""Measures batches and lanes the way the service runs them, and says which settings follow.

A lane prepares pictures from their bytes and then runs them, in turns. That matters: preparing pushes
the network's weights out of the cache, and a batch brings them back once for all of its pictures. A
loop of bare runs, which is measured beside it, hides most of what batches save.

Configurations take turns in short slices, round after round: whatever else happens on the machine
then happens to all of them, and a round compares them fairly even where rounds differ.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
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

_LEAST_GAIN: Final = 0.03  # less is not worth a setting
_ENOUGH: Final = 0.97  # of the best rate: a smaller batch is answered sooner
QUIET_SHARE: Final = 0.75  # of a core, that a lane must have had for anything to be concluded


@dataclass(frozen=True, slots=True)
class Configuration:
    """Runs at the same time, threads inside each and pictures in each.

    Only a picture that is alone has more than one thread; no setting gives them to others.
    """

    lanes: int
    threads: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What one slice showed of one configuration, or the medians of several.

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


def configurations(default: Configuration, cpus: int, *, on_cores: bool) -> list[Configuration]:
    """Returns what to measure: the default's lanes first, a picture that is alone last."""
    largest = default.batch_size
    sizes = sorted({largest} | {2**power for power in range(largest.bit_length())})
    rivals = {1, cpus if on_cores else 2} - {default.lanes}
    chosen = [Configuration(n, 1, size) for n in (default.lanes, *sorted(rivals)) for size in sizes]
    if on_cores and cpus > 1:
        chosen.append(Configuration(1, cpus, 1))
    return chosen


def schedule(batches_s: Sequence[float], seconds: float) -> tuple[int, float, float]:
    """Returns how many rounds of slices of how many seconds, and the seconds that all take.

    A slice has one batch at least, so slow networks get fewer rounds, but never less than
    `MIN_ROUNDS`. `batches_s` are the seconds of one batch of each configuration, prepared and run.
    """
    slice_s = seconds / (ROUNDS * len(batches_s))
    # A batch that is longer than its slice is run once prepared and once, a little shorter, bare.
    round_s = sum(
        max((1 - _BARE_SHARE) * slice_s, batch_s) + max(_BARE_SHARE * slice_s, batch_s)
        for batch_s in batches_s
    )
    rounds = max(MIN_ROUNDS, min(ROUNDS, int(seconds / round_s)))
    return rounds, slice_s, rounds * round_s


class Bench:
    """Lanes that prepare and run pictures without a server; for one thread.

    They prepare what they run, or threads apart from them do, as in the service for a GPU.
    """

    def __init__(
        self,
        engine: Engine,
        prepare: Callable[[bytes], Tensor],
        pictures: Sequence[bytes],
        *,
        prepare_threads: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._engine = engine
        self._prepare = prepare
        self._pictures = pictures
        self._apart = ThreadPoolExecutor(prepare_threads) if prepare_threads else None
        self._ahead = 2 * prepare_threads  # rows that are always being prepared
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._stopped = threading.Event()
        self._lanes: list[DaemonThread] = []  # kept: an engine may have buffers for each thread

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()
        if self._apart is not None:
            self._apart.shutdown(cancel_futures=True)

    def warm_up(self, chosen: Sequence[Configuration]) -> list[float]:
        """Runs one batch of each, since the first of a size may allocate; returns its seconds."""
        for one in chosen:
            self._slice(one, 0, 0.0)
        return [self._slice(one, 0, 0.0)[1] for one in chosen]

    def sample(self, configuration: Configuration, number: int, slice_s: float) -> Sample:
        """Measures a configuration in one round; all of them have the same pictures in it."""
        before_s = self._cpu_clock()
        rate, batch_s, n_images = self._slice(configuration, number, (1 - _BARE_SHARE) * slice_s)
        cpu_s = self._cpu_clock() - before_s

        bare_rate, *_ = self._slice(configuration, number, _BARE_SHARE * slice_s, bare=True)
        return Sample(rate, 1e3 * batch_s, 1e3 * cpu_s / n_images, bare_rate)

    def _slice(
        self, configuration: Configuration, number: int, slice_s: float, *, bare: bool = False
    ) -> tuple[float, float, int]:
        """Returns images/s of all lanes, the median seconds of a batch, and the number of images."""
        n_lanes, size = configuration.lanes, configuration.batch_size
        while len(self._lanes) < n_lanes:
            self._lanes.append(DaemonThread(f"tune-{len(self._lanes)}"))
        runs = [Run(wide=configuration.threads > 1) for _ in range(n_lanes)]

        def lane(index: int) -> list[float]:
            """Runs batches for the slice, to the nearest whole one; returns the seconds of each."""
            batches = self._batches(number * _STEP + index * len(self._pictures) // n_lanes, size)
            if bare:
                batches = cycle([next(batches)])
            took: list[float] = []
            began_s = before_s = self._clock()
            while not self._stopped.is_set():
                self._engine.run(next(batches), runs[index])
                now_s = self._clock()
                took.append(now_s - before_s)
                if now_s - began_s + took[-1] / 2 >= slice_s:
                    break
                before_s = now_s
            return took

        lanes = [self._lanes[index].submit(partial(lane, index)) for index in range(n_lanes)]
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

    def _batches(self, start: int, size: int) -> Iterator[Batch]:
        rows = self._rows(start)
        while True:
            # As in the service, one picture needs no copy.
            yield next(rows)[None] if size == 1 else np.stack(list(islice(rows, size)))

    def _rows(self, start: int) -> Iterator[Tensor]:
        pictures = islice(cycle(self._pictures), start % len(self._pictures), None)
        if self._apart is None:
            yield from map(self._prepare, pictures)
            return
        ahead: deque[Future[Tensor]] = deque()
        for picture in pictures:
            ahead.append(self._apart.submit(self._prepare, picture))
            if len(ahead) > self._ahead:
                yield ahead.popleft().result()


@dataclass(frozen=True, slots=True)
class Choice:
    """The configuration to use, and what it was compared by.

    Attributes:
        rival: the best of all but the default; None where nothing can be compared.
        ratios: its images/s relative to the default's, for each round that both have.
        core_share: of a core, that a lane with one thread had; 1 on a device.
    """

    configuration: Configuration
    rival: Configuration | None = None
    ratios: Sequence[float] = ()
    core_share: float = 1.0


def choose(samples: Samples, default: Configuration, *, on_cores: bool = True) -> Choice:
    """Returns the default, or what beats it by more than the spread over the rounds.

    Of several, the one with the smallest batches that is nearly as fast as the best: batches make
    pictures wait for each other. The default's lanes are preferred likewise. Where lanes had little
    of the cores that their runs take, something else disturbed them, and the default stands.
    """
    served = {one: rounds for one, rounds in samples.items() if one.threads == 1}
    # Round by round, so that what slows a whole round down cancels out.
    ratios = {
        one: [
            sample.images_per_s / base.images_per_s
            # An interrupted round has only some.
            for sample, base in zip(rounds, samples.get(default, []), strict=False)
        ]
        for one, rounds in served.items()
        if one != default
    }
    gains = {one: median(ratios[one]) - 1 for one in ratios if ratios[one]}
    if not gains:
        return Choice(default)

    # A lane with one thread is at work all the time, so what it lacks was taken by something else.
    shares = [
        sample.cpu_ms * sample.images_per_s / 1e3 / one.lanes
        for one, rounds in served.items()
        for sample in rounds
    ]
    core_share = median(shares) if on_cores else 1.0
    clear = [one for one in gains if _is_clear(ratios[one])]
    rival = max(clear or gains, key=lambda one: gains[one])
    if not clear or core_share < QUIET_SHARE:
        return Choice(default, rival, ratios[rival], core_share)
    best = min(
        (one for one in clear if 1 + gains[one] >= _ENOUGH * (1 + gains[rival])),
        key=lambda one: (one.lanes != default.lanes, one.batch_size),
    )
    return Choice(best, best, ratios[best], core_share)


def _is_clear(ratios: Sequence[float]) -> bool:
    # Of a dozen rivals that are no better, one passes in 5 % of all measurements with 6 rounds and
    # in 1 % with 9 (simulated, normal noise of 3 to 25 %); a gain of 20 % at 3 % of noise always
    # does.
    beyond_spread = median(ratios) - 1 > max(_LEAST_GAIN, half_range(ratios))
    return len(ratios) >= MIN_ROUNDS and beyond_spread and min(ratios) > 1


def half_range(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / 2


def changed_settings(chosen: Configuration, default: Configuration) -> dict[str, int]:
    """Returns the settings of `convserve serve` to set, by field name; empty for the default."""
    settings = {"max_batch_size": chosen.batch_size, "lanes": chosen.lanes}
    usual = {"max_batch_size": default.batch_size, "lanes": default.lanes}
    return {name: value for name, value in settings.items() if value != usual[name]}

"""Measures batches and lanes as the service runs them, and chooses settings.

A lane alternates between preparing pictures (decode and preprocess) and inference. This matters:
preparing evicts the network's weights from the cache, and a batch loads them once for all of its
pictures. Bare runs, which are inference only, are measured too, but hide most of what batches save.

All configurations are measured in every round, in short slices. Other load on the machine then
affects all of them, and the comparison within a round stays fair even if rounds differ.
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
MIN_ROUNDS: Final = 5  # even for slow networks: with fewer, noise alone often looks like a gain
_BARE_SHARE: Final = 0.25  # of a slice; bare runs vary less
_ROUND_OFFSET: Final = 7  # each round starts this many pictures later

_MIN_GAIN: Final = 0.03  # less is not worth a setting
_NEARLY_BEST: Final = 0.97  # of the best rate; smaller batches have lower latency
QUIET_SHARE: Final = 0.75  # with a smaller share of a core per lane, the results say nothing


@dataclass(frozen=True, slots=True)
class Configuration:
    """How batches are run."""

    lanes: int
    threads: int  # of one run; more than one only for a single picture, without a setting for it
    batch_size: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The result of one slice of a configuration, or the medians of several."""

    images_per_s: float  # of all lanes together, prepared and run
    batch_ms: float  # from the first picture's bytes to the batch's results; the median
    cpu_ms: float  # CPU time of the process per picture
    bare_images_per_s: float  # of all lanes together, inference on the same batch again and again


# One sample per round. After an interruption, some configurations have one less.
Samples = dict[Configuration, list[Sample]]


def configurations(default: Configuration, cpus: int, *, on_cores: bool) -> list[Configuration]:
    """Returns what to measure: the default's lanes first, a single picture on all cores last."""
    largest = default.batch_size
    sizes = sorted({largest} | {2**power for power in range(largest.bit_length())})
    rivals = {1, cpus if on_cores else 2} - {default.lanes}
    chosen = [Configuration(n, 1, size) for n in (default.lanes, *sorted(rivals)) for size in sizes]
    if on_cores and cpus > 1:
        chosen.append(Configuration(1, cpus, 1))
    return chosen


def schedule(batches_s: Sequence[float], seconds: float) -> tuple[int, float, float]:
    """Returns the number of rounds, the seconds of a slice, and the seconds of all rounds together.

    A slice has at least one batch, so slow networks get fewer rounds, but at least `MIN_ROUNDS`.
    `batches_s` are the seconds of one batch of each configuration, prepared and run.
    """
    slice_s = seconds / (ROUNDS * len(batches_s))
    # A batch longer than its slice runs once with preparing and once, a little shorter, bare.
    round_s = sum(
        max((1 - _BARE_SHARE) * slice_s, batch_s) + max(_BARE_SHARE * slice_s, batch_s)
        for batch_s in batches_s
    )
    rounds = max(MIN_ROUNDS, min(ROUNDS, int(seconds / round_s)))
    return rounds, slice_s, rounds * round_s


class Bench:
    """Lanes that prepare and run pictures without a server. Not thread-safe.

    Lanes prepare their own pictures. With `prepare_threads` a thread pool does, as the service does
    for a GPU.
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
        self._prepare_pool = ThreadPoolExecutor(prepare_threads) if prepare_threads else None
        self._prefetched = 2 * prepare_threads  # rows being prepared at any time
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._stopped = threading.Event()
        self._lanes: list[DaemonThread] = []  # reused: an engine may have buffers per thread

    def close(self) -> None:
        for lane in self._lanes:
            lane.close()
        if self._prepare_pool is not None:
            self._prepare_pool.shutdown(cancel_futures=True)

    def warm_up(self, chosen: Sequence[Configuration]) -> list[float]:
        """Runs one batch of each size, which may allocate; returns the seconds of a second one."""
        for one in chosen:
            self._slice(one, 0, 0.0)
        return [self._slice(one, 0, 0.0)[1] for one in chosen]

    def sample(self, configuration: Configuration, number: int, slice_s: float) -> Sample:
        """Measures a configuration in round `number`; all get the same pictures in a round."""
        before_s = self._cpu_clock()
        rate, batch_s, n_images = self._slice(configuration, number, (1 - _BARE_SHARE) * slice_s)
        cpu_s = self._cpu_clock() - before_s

        bare_rate, *_ = self._slice(configuration, number, _BARE_SHARE * slice_s, bare=True)
        return Sample(rate, 1e3 * batch_s, 1e3 * cpu_s / n_images, bare_rate)

    def _slice(
        self, configuration: Configuration, number: int, slice_s: float, *, bare: bool = False
    ) -> tuple[float, float, int]:
        # Returns images/s of all lanes, the median seconds of a batch, and the number of images.
        n_lanes, size = configuration.lanes, configuration.batch_size
        while len(self._lanes) < n_lanes:
            self._lanes.append(DaemonThread(f"tune-{len(self._lanes)}"))
        runs = [Run(all_cores=configuration.threads > 1) for _ in range(n_lanes)]

        def lane(index: int) -> list[float]:
            """Runs whole batches for about `slice_s`; returns the seconds of each."""
            batches = self._batches(
                number * _ROUND_OFFSET + index * len(self._pictures) // n_lanes, size
            )
            if bare:
                batches = cycle([next(batches)])

            times_s: list[float] = []
            started_s = before_s = self._clock()
            while not self._stopped.is_set():
                self._engine.run(next(batches), runs[index])
                now_s = self._clock()
                times_s.append(now_s - before_s)
                if now_s - started_s + times_s[-1] / 2 >= slice_s:  # to the nearest whole batch
                    break
                before_s = now_s
            return times_s

        lanes = [self._lanes[index].submit(partial(lane, index)) for index in range(n_lanes)]
        try:
            done, _ = wait(lanes, return_when=FIRST_EXCEPTION)
            times = [one.result() for one in done]
        except BaseException:
            self._stopped.set()
            for run in runs:
                run.interrupt()
            wait(lanes)  # exiting while a thread is in native code would abort the process
            raise

        # Each lane by its own time, because the last one may end a batch later than the others.
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
        if self._prepare_pool is None:
            yield from map(self._prepare, pictures)
            return

        pending: deque[Future[Tensor]] = deque()
        for picture in pictures:
            pending.append(self._prepare_pool.submit(self._prepare, picture))
            if len(pending) > self._prefetched:
                yield pending.popleft().result()


@dataclass(frozen=True, slots=True)
class Choice:
    """The configuration to use, and the comparison behind it."""

    configuration: Configuration
    rival: Configuration | None = None  # the best except the default; None without a comparison
    ratios: Sequence[float] = ()  # the rival's images/s relative to the default's, round by round
    core_share: float = 1.0  # of a core per single-threaded lane; 1 on a device


def choose(samples: Samples, default: Configuration, *, on_cores: bool = True) -> Choice:
    """Returns the default, unless another configuration is faster by more than the spread.

    Of those nearly as fast as the best, it prefers the default's number of lanes, then small batches,
    because pictures in a batch wait for each other. If other work took the cores, it keeps the
    default.
    """
    served = {one: rounds for one, rounds in samples.items() if one.threads == 1}
    # Within each round, so that whatever slows down a whole round cancels out.
    ratios = {
        one: [
            sample.images_per_s / base.images_per_s
            # After an interruption the last round is incomplete.
            for sample, base in zip(rounds, samples.get(default, []), strict=False)
        ]
        for one, rounds in served.items()
        if one != default
    }
    gains = {one: median(ratios[one]) - 1 for one in ratios if ratios[one]}
    if not gains:
        return Choice(default)

    # A single-threaded lane is always busy, so what it lacks of a core went to other work.
    shares = [
        sample.cpu_ms * sample.images_per_s / 1e3 / one.lanes
        for one, rounds in served.items()
        for sample in rounds
    ]
    core_share = median(shares) if on_cores else 1.0

    faster = [one for one in gains if _is_faster(ratios[one])]
    rival = max(faster or gains, key=lambda one: gains[one])
    if not faster or core_share < QUIET_SHARE:
        return Choice(default, rival, ratios[rival], core_share)
    best = min(
        (one for one in faster if 1 + gains[one] >= _NEARLY_BEST * (1 + gains[rival])),
        key=lambda one: (one.lanes != default.lanes, one.batch_size),
    )
    return Choice(best, best, ratios[best], core_share)


def _is_faster(ratios: Sequence[float]) -> bool:
    # False positives, simulated with twelve rivals as fast as the default and normal noise of 3% to
    # 25%: one passes in 5% of all measurements with 6 rounds, in 1% with 9. A gain of 20% with 3%
    # noise always passes.
    beyond_spread = median(ratios) - 1 > max(_MIN_GAIN, half_range(ratios))
    return len(ratios) >= MIN_ROUNDS and beyond_spread and min(ratios) > 1


def half_range(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / 2


def changed_settings(chosen: Configuration, default: Configuration) -> dict[str, int]:
    """Returns the settings that differ from the default, by field name."""
    settings = {"max_batch_size": chosen.batch_size, "lanes": chosen.lanes}
    usual = {"max_batch_size": default.batch_size, "lanes": default.lanes}
    return {name: value for name, value in settings.items() if value != usual[name]}

"""Measures what batches cost on this machine and chooses how a version is run.

What pays differs by processor, network and precision, so it is measured where it runs: pictures a
second for batch sizes, lanes and threads, with the version's own graph. That takes a second or two
of all cores, so it waits for a quiet moment after the start and stops as soon as a request comes.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from contract.preprocessing import Tensor
from service.batching.batcher import Batcher
from service.models.engine import Batch, Engine, Run
from service.system.threads import DaemonThread

log = logging.getLogger(__name__)

_QUIET_S: Final = 2.0  # without any request, before anything is measured
_POINT_S: Final = 0.12  # of each measurement, at least
_CLEARLY: Final = 0.85  # of the best rate: fewer lanes must beat more of them by as much
_ENOUGH: Final = 0.95  # of the best rate: what waits less for nearly the same is better
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Point:
    """One measured way of running.

    Attributes:
        batch_size: pictures in one run.
        lanes: runs at the same time.
        threads: threads inside one run.
        images_per_s: of all lanes together.
        run_ms: milliseconds of one run.
    """

    batch_size: int
    lanes: int
    threads: int
    images_per_s: float
    run_ms: float


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may be chosen.

    Attributes:
        sizes: batch sizes, ascending; a single one is not up for choice.
        lanes: numbers of lanes, ascending; likewise.
        threads: threads inside one run beside others.
        wide_threads: threads inside a run that is alone.
    """

    sizes: tuple[int, ...]
    lanes: tuple[int, ...]
    threads: int
    wide_threads: int


@dataclass(slots=True)
class Tuning:
    """What is known about running a version, and what was chosen.

    Attributes:
        state: `waiting` for a quiet moment, `measured`, `failed`, or `off`.
        candidates: what may be chosen.
        points: what was measured, the batch-cost curve.
        lanes: in force.
        max_batch_size: in force.
    """

    state: Literal["waiting", "measured", "failed", "off"]
    candidates: Candidates
    lanes: int
    max_batch_size: int
    points: list[Point] = field(default_factory=list)


def sizes_up_to(largest: int) -> tuple[int, ...]:
    """Returns the batch sizes to measure: powers of two, and the largest."""
    return (*(size for size in _SIZES if size < largest), largest)


class Interrupted(Exception):
    """A request came: there are better uses for the cores."""


def measure(
    engine: Engine,
    row: Tensor,
    candidates: Candidates,
    *,
    is_quiet: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Point]:
    """Measures every candidate; takes all cores for a second or two.

    Args:
        engine: of the version.
        row: a prepared picture, which batches are made of.
        candidates: what to measure.
        is_quiet: asked between runs.
        clock: monotonic seconds.

    Raises:
        Interrupted: it was not quiet any more.
    """
    return list(_points(_Bench(engine, row, is_quiet, clock), candidates))


def choose(points: Sequence[Point]) -> Point:
    """Returns the way of running that answers nearly as many pictures as the best and waits least.

    Other work on the machine may disturb the measurement, so what was measured must be clearly
    better than the default to be preferred to it: as many lanes as there may be, batches of one.

    Args:
        points: at least one.
    """
    best = max(point.images_per_s for point in points)
    good = [point for point in points if point.images_per_s >= _CLEARLY * best]
    lanes = max(point.lanes for point in good)  # lanes decode as well, for which each is needed
    beside = [point for point in good if point.lanes == lanes]
    enough = _ENOUGH * max(point.images_per_s for point in beside)
    return min(
        (point for point in beside if point.images_per_s >= enough),
        key=lambda point: point.batch_size,
    )


def _points(bench: _Bench, candidates: Candidates) -> Iterator[Point]:
    for lanes in candidates.lanes:
        for size in candidates.sizes:
            yield bench.point(size, lanes, candidates.threads, wide=False)
    if candidates.wide_threads > candidates.threads:
        yield bench.point(1, 1, candidates.wide_threads, wide=True)


@dataclass(frozen=True, slots=True)
class _Bench:
    engine: Engine
    row: Tensor
    is_quiet: Callable[[], bool]
    clock: Callable[[], float]

    def point(self, size: int, lanes: int, threads: int, *, wide: bool) -> Point:
        batch = np.stack([self.row] * size)
        self.engine.run(batch, Run(wide=wide))  # the first run of a size may allocate
        times: list[list[float]] = [[] for _ in range(lanes)]
        began_s = self.clock()
        others = [
            threading.Thread(target=self._repeat, args=(batch, wide, began_s, mine), daemon=True)
            for mine in times[1:]
        ]
        for other in others:
            other.start()
        self._repeat(batch, wide, began_s, times[0])
        for other in others:
            other.join()
        took_s = self.clock() - began_s
        if not self.is_quiet():
            raise Interrupted
        runs = sorted(run_s for mine in times for run_s in mine)
        return Point(size, lanes, threads, size * len(runs) / took_s, 1e3 * runs[len(runs) // 2])

    def _repeat(self, batch: Batch, wide: bool, began_s: float, times: list[float]) -> None:
        before_s = began_s
        while (before_s - began_s < _POINT_S or len(times) < 3) and self.is_quiet():
            self.engine.run(batch, Run(wide=wide))
            now_s = self.clock()
            times.append(now_s - before_s)
            before_s = now_s


class Tuner:
    """Measures versions one after the other whenever nothing else is going on."""

    def __init__(self, is_quiet: Callable[[], bool], *, quiet_s: float = _QUIET_S) -> None:
        """Prepares.

        Args:
            is_quiet: whether no request is in hand; asked from any thread.
            quiet_s: how long it must have been so.
        """
        self._is_quiet = is_quiet
        self._quiet_s = quiet_s
        self._thread = DaemonThread("tune")

    async def tune(self, tuning: Tuning, batcher: Batcher, engine: Engine, row: Tensor) -> None:
        """Measures a version in a quiet moment and has its batcher run as is best."""
        while tuning.state == "waiting":
            await self._quiet()
            try:
                points = await asyncio.wrap_future(
                    self._thread.submit(
                        lambda: measure(engine, row, tuning.candidates, is_quiet=self._is_quiet)
                    )
                )
            except Interrupted:
                continue
            except Exception:
                log.exception("the batch costs could not be measured")
                tuning.state = "failed"
                return
            best = choose([point for point in points if point.threads == tuning.candidates.threads])
            tuning.points = points
            tuning.lanes, tuning.max_batch_size = best.lanes, best.batch_size
            tuning.state = "measured"
            batcher.resize(lanes=best.lanes, max_batch_size=best.batch_size)
            chosen = {"lanes": best.lanes, "max_batch_size": best.batch_size}
            log.info("tuned", extra={**chosen, "images_per_s": round(best.images_per_s, 1)})

    def close(self) -> None:
        """Lets the thread end; returns at once."""
        self._thread.close()

    async def _quiet(self) -> None:
        quiet_for_s, step_s = 0.0, self._quiet_s / 4
        while quiet_for_s < self._quiet_s:
            await asyncio.sleep(step_s)
            quiet_for_s = quiet_for_s + step_s if self._is_quiet() else 0.0

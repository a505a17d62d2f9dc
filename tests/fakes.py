"""Fakes of the slow or unpredictable parts: engine, version and clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


class FakeEngine:
    """An engine with known answers. Tests can block its runs, make them fail or corrupt them.

    A row is a number v, shape (1,). Its probabilities are (v, 1 - v). A run that contains a row of
    `poison` raises, one of `not_enough_memory` raises MemoryError. Rows of `not_finite` get NaN.

    Attributes:
        batches: the values of every started run, in order.
    """

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.poison: set[float] = set()
        self.not_finite: set[float] = set()
        self.not_enough_memory: set[float] = set()
        self.answer: Callable[[NDArray[Any]], NDArray[np.float32]] = self._answer
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()
        self._open.set()

    def hold(self) -> None:
        """Blocks runs inside the engine until `release`."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def run(self, batch: NDArray[Any], _run: object = None) -> NDArray[np.float32]:
        """Answers a batch of shape (N, 1) with shape (N, 2)."""
        self.batches.append([float(value) for value in batch[:, 0]])
        self.entered.release()
        self._open.wait()
        return self.answer(batch)

    def _answer(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        values = batch[:, 0].astype(np.float32)
        if self.poison & {float(value) for value in values}:
            raise RuntimeError("poisoned")
        if self.not_enough_memory & {float(value) for value in values}:
            raise MemoryError

        scores = np.stack([values, 1 - values], axis=1)
        for value in self.not_finite:
            scores[values == np.float32(value)] = np.nan
        return scores


@dataclass(eq=False)
class FakeVersion:
    """A version as the batcher sees it, run by a fake engine."""

    engine: FakeEngine
    key: tuple[str, int] = ("fake", 1)
    max_batch_size: int = 8
    load_s: float = 0.0
    manifest: Any = None


class FakeClock:
    """A monotonic clock that moves only when a test calls `advance`."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds

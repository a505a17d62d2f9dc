"""The cost of metrics and Server-Timing: the same requests with and without them.

    python -m benchmarks.micro.observability [--rounds R] [--requests N]

Blocks of requests with and without them go through the application in alternation, without sockets,
to a backend that has its result ready. The CPU time of the thread counts. The code is warm here.
Between runs of a network, which push it out of the caches, each line costs several times as much.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final
from unittest import mock

from benchmarks.micro.requests import send
from contract.predictions import DEFAULT_TOP_K
from service.api.dialects import native as classify
from service.app import create_app
from service.http import edge as middleware
from service.models.repository import LoadedVersion
from service.serving.backend import InferenceResult
from service.settings import Settings

_MODELS: Final = Path(__file__).resolve().parents[2] / "models"


async def _answer_at_once(version: LoadedVersion, *_: object) -> InferenceResult:
    ranking = [(index, 1 / version.manifest.n_classes) for index in range(DEFAULT_TOP_K)]
    return InferenceResult(ranking, 0.001, 0.001, 0.001, 0.001, 0.001, 1)


@contextmanager
def _replaced(*targets: tuple[Any, str, Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name, value in targets:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


_METRICS: Final = (
    (classify, "_count", lambda *_: None),
    (middleware.EdgeMiddleware, "_record", lambda *_: None),
)
_SERVER_TIMING: Final = ((classify, "_server_timing", lambda *_: "batch;desc=1"),)


async def measure(rounds: int, n_requests: int) -> list[tuple[str, float, float, float]]:
    """Returns the median, lowest and highest cost of each part, in CPU microseconds per request."""
    app: Any = create_app(Settings(models_dir=_MODELS, models_poll_s=0))
    # No decoding and no network: they vary by more than what is measured here.
    app.state.service.dependencies.classifier.active.backend.answer = _answer_at_once

    async def block(context: Callable[[], Any]) -> float:
        with context():
            before_s = time.thread_time()
            for _ in range(n_requests):
                # The first bytes of a JPEG are enough, because nothing decodes them.
                await send(app, "POST", "/v1/classify", b"\xff\xd8\xff")
            return 1e6 * (time.thread_time() - before_s) / n_requests

    without = {
        "stage histograms, counters": _METRICS,
        "Server-Timing": _SERVER_TIMING,
        "all of these": (*_METRICS, *_SERVER_TIMING),
    }
    found: dict[str, list[float]] = {name: [] for name in ("a request", *without)}
    await block(_replaced)  # warm-up

    for _ in range(rounds):
        # In each round anew, so that a change of the machine's speed hits both sides.
        whole = await block(_replaced)
        found["a request"].append(whole)
        for name, targets in without.items():
            found[name].append(whole - await block(partial(_replaced, *targets)))
    return [(name, median(us), min(us), max(us)) for name, us in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro.observability")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=500)
    arguments = parser.parse_args()
    # Without the request log: its cost depends on where the log goes.
    logging.disable(logging.CRITICAL)

    for name, middle, low, high in asyncio.run(measure(arguments.rounds, arguments.requests)):
        print(f"{name:28} {middle:7.1f} us ({low:.1f} to {high:.1f}, n = {arguments.rounds})")


if __name__ == "__main__":
    main()

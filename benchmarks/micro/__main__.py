"""Times decoding, preprocessing, the engine, the batcher and HTTP, each by itself.

    python -m benchmarks.micro [--graph FILE] [--photos FOLDER] [--seconds S]

Each row is the median of repeated calls, in ms per call and in ms per picture.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.bare import by_library, by_pillow
from benchmarks.contenders import CORES
from benchmarks.micro.requests import send
from benchmarks.photos import ROOT, default_folder, read_photos
from benchmarks.report import table
from contract.images import decode
from contract.manifest import Manifest, parse_manifest
from contract.preprocessing import to_input

_GRAPH: Final = ROOT / "models" / "efficientnet_lite0" / "1" / "model.onnx"
_BATCH_SIZES: Final = (1, 2, 4, 8)

Timed = tuple[str, float, int]  # what was timed, its median in ms, the pictures in one call


def timed(call: Callable[[], object], seconds: float) -> float:
    """Repeats a call for some seconds and returns the median in ms."""
    call()  # warm-up
    took: list[float] = []
    end_s = time.perf_counter() + seconds
    while not took or time.perf_counter() < end_s:
        before_s = time.perf_counter()
        call()
        took.append(time.perf_counter() - before_s)
    return 1e3 * median(took)


def preparation(photos: list[bytes], manifest: Manifest, seconds: float) -> Iterator[Timed]:
    """Times decoding and preprocessing, with the library and with Pillow alone."""
    turns = itertools.cycle(photos)
    # Decoded up front; twenty differ enough, and all of them would not fit into memory.
    pictures = itertools.cycle([decode(photo) for photo in photos[:20]])
    yield "decode in full", timed(lambda: decode(next(turns)), seconds), 1
    yield "preprocess", timed(lambda: to_input(next(pictures), manifest), seconds), 1
    yield "both, the library's way", timed(lambda: by_library(next(turns), manifest), seconds), 1
    yield "both, Pillow's way", timed(lambda: by_pillow(next(turns), manifest), seconds), 1


def engine(graph: Path, manifest: Manifest, seconds: float) -> Iterator[Timed]:
    """Times runs of several batch sizes, on one thread and on all cores."""
    declared = manifest.graph.input
    for threads in sorted({1, CORES}):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )
        for n in _BATCH_SIZES:
            # Open sides of the shape become 1; the values do not matter for the time.
            batch = np.zeros((n, *(side or 1 for side in declared.shape[1:])), declared.dtype)
            scores = [manifest.graph.scores.name]

            def run(
                session: Any = session, scores: list[str] = scores, batch: NDArray[Any] = batch
            ) -> object:
                return session.run(scores, {declared.name: batch})

            yield f"engine, batch {n}, {threads} threads", timed(run, seconds), n


class _NullEngine:
    """An engine that takes no time, so that what remains is the batcher."""

    def run(self, batch: NDArray[Any], run: object) -> NDArray[np.float32]:  # noqa: ARG002
        return np.ones((len(batch), 1), np.float32)


@dataclass(frozen=True)
class _NullVersion:
    manifest: Manifest
    engine: _NullEngine = field(default_factory=_NullEngine)
    key: tuple[str, int] = ("null", 1)
    max_batch_size: int = 8
    load_s: float = 0.0


async def batcher(manifest: Manifest, seconds: float) -> list[Timed]:
    """Times one request and 32 at once through the batcher, with an engine that takes no time."""
    from service.batching.batcher import Batcher, BatchLimits
    from service.batching.thread_lane import ThreadLaneFactory

    measured, version = Batcher(ThreadLaneFactory(), BatchLimits()), _NullVersion(manifest)
    measured.start()
    row = np.zeros((1,), np.float32)
    found: list[Timed] = []
    for n in (1, 32):
        took: list[float] = []
        end_s = time.perf_counter() + seconds
        while not took or time.perf_counter() < end_s:
            before_s = time.perf_counter()
            deadline_s = time.monotonic() + 60
            await asyncio.gather(*(measured.submit(version, row, deadline_s) for _ in range(n)))
            took.append(time.perf_counter() - before_s)
        found.append((f"batcher, {n} together", 1e3 * median(took), n))
    await measured.stop(1.0)
    return found


async def http(graph: Path, photos: list[bytes], seconds: float) -> list[Timed]:
    """Times requests through the application, without sockets: health, and a classification."""
    from service.app import create_app
    from service.settings import Settings

    app: Any = create_app(Settings(models_dir=graph.parents[2], models_poll_s=0))
    found: list[Timed] = []
    async with app.router.lifespan_context(app):
        for name, method, path, body in (
            ("HTTP, GET /livez", "GET", "/livez", b""),
            ("HTTP, POST /v1/classify", "POST", "/v1/classify", photos[0]),
        ):
            took: list[float] = []
            end_s = time.perf_counter() + seconds
            while not took or time.perf_counter() < end_s:
                before_s = time.perf_counter()
                await send(app, method, path, body)
                took.append(time.perf_counter() - before_s)
            found.append((name, 1e3 * median(took), 1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro")
    parser.add_argument("--graph", type=Path, default=_GRAPH, help="<name>/<version>/model.onnx")
    parser.add_argument("--photos", type=Path, default=default_folder())
    parser.add_argument("--seconds", type=float, default=2.0, help="of each row")
    arguments = parser.parse_args()

    # The application logs every request at level info, which is a cost of its own.
    logging.disable(logging.WARNING)

    photos = read_photos(arguments.photos)
    manifest = parse_manifest(arguments.graph.with_name("manifest.json").read_bytes())
    found = [
        *preparation(photos, manifest, arguments.seconds),
        *engine(arguments.graph, manifest, arguments.seconds),
        *asyncio.run(batcher(manifest, arguments.seconds)),
        *asyncio.run(http(arguments.graph, photos, arguments.seconds)),
    ]

    rows = [(name, f"{ms:.3f}", f"{ms / n:.3f}") for name, ms, n in found]
    print(table(("part", "ms a call", "ms a picture"), rows))


if __name__ == "__main__":
    main()

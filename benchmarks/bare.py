"""The bare limit: the fastest loop over the same bytes on all cores, without a server.

    python -m benchmarks.bare --graph models/efficientnet_lite0/2/model.onnx

No server in Python can do better with this preparation and this graph. Prints one JSON object:
images/s and CPU ms/image with the library's preparation and with Pillow's full decode, on threads
and on processes, and the latency of one picture at a time, whose run has all cores.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import resource
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from benchmarks.contenders import CORES
from benchmarks.measures import percentile
from benchmarks.photos import default_folder, read_photos
from contract import preprocessing
from contract.manifest import Manifest, parse_manifest
from contract.preprocessing import INTERPOLATIONS, resized_size

Prepare = Callable[[bytes, Manifest], NDArray[Any]]
_WARM_UP: Final = 5


def by_library(data: bytes, manifest: Manifest) -> NDArray[Any]:
    """Prepares one picture as the service does: uint8, shape (S, S, 3)."""
    return preprocessing.read_input(data, manifest)


def by_pillow(data: bytes, manifest: Manifest) -> NDArray[Any]:
    """Prepares one picture as tutorials do, with Pillow's full decode and resize."""
    spec = manifest.preprocessing
    image = Image.open(io.BytesIO(data)).convert("RGB")
    size, crop = resized_size(image.size, spec), spec.crop_size_px
    image = image.resize(size, INTERPOLATIONS[spec.interpolation])
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    return np.asarray(image.crop((left, top, left + crop, top + crop)))  # (S, S, 3)


PREPARATIONS: Final[dict[str, Prepare]] = {"library": by_library, "pillow": by_pillow}


class BatchJob:
    """Answers photos with one session, which has a given number of threads."""

    def __init__(self, graph: Path, photos: Sequence[bytes], prepare: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(graph), options, providers=["CPUExecutionProvider"]
        )

        self._manifest = parse_manifest(graph.with_name("manifest.json").read_bytes())
        self._prepare = PREPARATIONS[prepare]
        self._photos = photos
        # The first runs of a session allocate memory.
        for index in range(_WARM_UP):
            self.answer(index)

    def answer(self, index: int) -> NDArray[np.float32]:
        """Prepares and runs one photo; returns probabilities, float32, shape (1, C)."""
        row = self._prepare(self._photos[index % len(self._photos)], self._manifest)
        graph = self._manifest.graph
        probabilities: NDArray[np.float32]
        (probabilities,) = self._session.run([graph.scores.name], {graph.input.name: row[None]})
        return probabilities


def loop_of_threads(graph: Path, photos: Sequence[bytes], prepare: str, seconds: float) -> Any:
    """Measures one thread per core. They share a session whose runs take one thread each."""
    job, turns, counts = BatchJob(graph, photos, prepare, 1), itertools.count(), [0] * CORES
    end_s = time.monotonic() + seconds

    def work(slot: int) -> None:
        while time.monotonic() < end_s:
            job.answer(next(turns))
            counts[slot] += 1

    before_s, started_s = _cpu_s(), time.monotonic()
    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(CORES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _numbers(sum(counts), time.monotonic() - started_s, _cpu_s() - before_s)


def loop_of_processes(graph: Path, photos: Sequence[bytes], prepare: str, seconds: float) -> Any:
    """Measures one process per core, each with a session of its own."""
    # A fork passes the photos on without a copy. No session is open here: its threads would be
    # missing in the children.
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    barrier = context.Barrier(CORES)

    def work(slot: int) -> None:
        job = BatchJob(graph, photos, prepare, 1)
        # All start together, when each has opened its session.
        barrier.wait(60)
        before_s, started_s, n = _cpu_s(), time.monotonic(), 0
        while time.monotonic() < started_s + seconds:
            job.answer(slot + CORES * n)
            n += 1
        results.put((n, time.monotonic() - started_s, _cpu_s() - before_s))

    processes = [context.Process(target=work, args=(slot,)) for slot in range(CORES)]
    for process in processes:
        process.start()
    # Before `join`, because a process ends only when its result has been taken.
    found = [results.get(timeout=seconds + 60) for _ in processes]
    for process in processes:
        process.join(10)
    n, wall_s, used_s = (sum(column) for column in zip(*found, strict=True))
    return _numbers(n, wall_s / CORES, used_s)


def lone(graph: Path, photos: Sequence[bytes], prepare: str, seconds: float) -> Any:
    """Measures one picture after the other, each run on all cores: the load of a single client."""
    latencies_s: list[float] = []
    job = BatchJob(graph, photos, prepare, CORES)
    used_s = _cpu_s()
    started_s = time.monotonic()
    while time.monotonic() < started_s + seconds:
        before_s = time.monotonic()
        job.answer(len(latencies_s))
        latencies_s.append(time.monotonic() - before_s)

    p50, p99 = percentile(latencies_s, 50), percentile(latencies_s, 99)
    numbers = _numbers(len(latencies_s), time.monotonic() - started_s, _cpu_s() - used_s)
    return numbers | {"p50_ms": 1e3 * (p50 or 0), "p99_ms": 1e3 * (p99 or 0)}


def measure(graph: Path, photos: Sequence[bytes], seconds: float) -> dict[str, Any]:
    """Returns all numbers of a graph. Takes six times `seconds`."""
    return {
        prepare: {
            "processes": loop_of_processes(graph, photos, prepare, seconds),
            "threads": loop_of_threads(graph, photos, prepare, seconds),
            "lone": lone(graph, photos, prepare, seconds),
        }
        for prepare in PREPARATIONS
    }


def _numbers(n: int, wall_s: float, used_s: float) -> dict[str, float]:
    return {"n": n, "per_s": n / wall_s, "cpu_ms_per_image": 1e3 * used_s / max(1, n)}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--graph", type=Path, required=True, help="beside it, its manifest.json")
    parser.add_argument("--photos", type=Path, default=default_folder())
    parser.add_argument("--seconds", type=float, default=5.0, help="of each of the six loops")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.graph, read_photos(arguments.photos), arguments.seconds)))


if __name__ == "__main__":
    main()

"""Time of each step for one picture, on one thread.

Decoding takes as long as the file's size demands, and a run of the graph as long as its batch does.
So they are timed separately: bytes to pixels, pixels to an input row, and the graph alone.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.manifest import Interface
from contract.preprocessing import decode_for, read_input, to_input
from training.data.pictures import Picture
from training.errors import PicturesMissing
from training.evaluation.session import SessionPlan, open_session, run_rows

N_PICTURES: Final = 50
BATCH_SIZES: Final = (1, 8)
_N_WARM_UP: Final = 2

Clock = Callable[[], float]  # monotonic seconds


@dataclass(frozen=True, slots=True)
class StepTime:
    """Time of one step in ms for each picture: median, first and third quartile of n measurements."""

    step: str
    n: int
    median_ms: float
    quartiles_ms: tuple[float, float]


def measure_speed(
    graph: bytes, manifest: Interface, pictures: Sequence[Picture], clock: Clock = time.perf_counter
) -> tuple[StepTime, ...]:
    """Times decoding, preprocessing and the graph on one thread of the CPU.

    Args:
        graph: the ONNX file.
        manifest: its preprocessing and outputs.
        pictures: files that decode; the first N_PICTURES are timed.
        clock: replaced in tests.

    Returns:
        A row for decoding, one for preprocessing, and one for each of BATCH_SIZES the graph accepts.

    Raises:
        PicturesMissing: there are none.
    """
    files = [picture.data for picture in pictures[:N_PICTURES]]
    if not files:
        raise PicturesMissing("there are no pictures to time")

    read_input(files[0], manifest)  # warm-up: the first call loads the decoder
    decoding, preprocessing, rows = _prepare(files, manifest, clock)
    steps = [_step_time("decode", decoding), _step_time("preprocess", preprocessing)]

    session = open_session(graph, SessionPlan(threads=1))
    output = manifest.graph.scores.name
    for size in BATCH_SIZES:
        if size == 1 or manifest.graph.fixed_batch_size is None:
            batches = _batches(rows, size)
            for batch in batches[:_N_WARM_UP]:
                run_rows(session, batch, output, size)

            times_ms = []
            for batch in batches:
                start = clock()
                run_rows(session, batch, output, size)
                times_ms.append(1e3 * (clock() - start) / size)
            steps.append(_step_time(f"graph, batch of {size}", times_ms))
    return tuple(steps)


def _prepare(
    files: Sequence[bytes], manifest: Interface, clock: Clock
) -> tuple[list[float], list[float], list[NDArray[Any]]]:
    decoding, preprocessing, rows = [], [], []  # ms, ms, input rows
    for data in files:
        start = clock()
        picture = decode_for(data, manifest.preprocessing)
        decoded = clock()
        rows.append(to_input(picture, manifest))
        preprocessing.append(1e3 * (clock() - decoded))
        decoding.append(1e3 * (decoded - start))
    return decoding, preprocessing, rows


def _batches(rows: Sequence[NDArray[Any]], size: int) -> list[list[NDArray[Any]]]:
    starts = range(0, len(rows), size)
    # The last batch is filled up with the first rows, so that all batches cost the same.
    return [[rows[(start + i) % len(rows)] for i in range(size)] for start in starts]


def _step_time(step: str, times_ms: Sequence[float]) -> StepTime:
    low, median, high = (float(value) for value in np.percentile(times_ms, (25, 50, 75)))
    return StepTime(step, len(times_ms), median, (low, high))


def describe_machine() -> str:
    """Returns the processor's name, if the system gives it, and the number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"

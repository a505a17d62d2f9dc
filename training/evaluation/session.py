"""The only module of `training` that imports onnxruntime, after it switches off its telemetry.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.telemetry import disable_runtime_telemetry

ERRORS_ONLY: Final = 3  # of onnxruntime's log levels
BATCH_SIZE: Final = 8


def runtime() -> Any:
    return _imported("onnxruntime")


def quantization() -> Any:
    return _imported("onnxruntime.quantization")


def float16() -> Any:
    return _imported("onnxruntime.transformers.float16")


@cache
def _imported(module: str) -> Any:
    disable_runtime_telemetry()  # for scripts without our entry point
    return importlib.import_module(module)


@dataclass(frozen=True, slots=True)
class SessionPlan:
    """Runtime settings of a session.

    Attributes:
        threads: for one run; 0 means one for each core.
        optimise: False runs the graph node by node as written. For an int8 graph that means exact float
            arithmetic between the roundings instead of the processor's int8 kernels.
    """

    threads: int = 0
    optimise: bool = True


def open_session(graph: bytes, plan: SessionPlan | None = None) -> Any:
    plan = plan or SessionPlan()
    ort = runtime()

    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = plan.threads
    if not plan.optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL

    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_rows(
    session: Any, rows: Sequence[NDArray[Any]], output: str, batch_size: int = BATCH_SIZE
) -> NDArray[np.float32]:
    """Runs prepared rows through a session in batches; returns an output, float32, shape (N, C).

    Args:
        session: from `open_session`.
        rows: N input rows, each of the graph's dtype and shape without the batch axis.
        output: name of the output.
        batch_size: 1 for graphs with a fixed batch.
    """
    return run_outputs(session, rows, [output], batch_size)[0]


def run_outputs(
    session: Any, rows: Sequence[NDArray[Any]], outputs: Sequence[str], batch_size: int = BATCH_SIZE
) -> list[NDArray[np.float32]]:
    """Does what `run_rows` does, for several outputs of the same run."""
    name = session.get_inputs()[0].name
    batches = [
        session.run(list(outputs), {name: np.stack(chunk)}) for chunk in chunks(rows, batch_size)
    ]
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def chunks(rows: Sequence[NDArray[Any]], size: int) -> Iterator[Sequence[NDArray[Any]]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]

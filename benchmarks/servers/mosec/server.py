"""Mosec: raw bytes in, JSON out, like the computer-vision service in its documentation.

With BENCH_STAGES=1, each worker prepares and runs a batch. With 2, one stage of workers prepares
pictures and a single worker runs batches.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import picture
from mosec import Server, Worker


class RawBody(Worker):
    """Takes the upload unchanged. The default would parse JSON."""

    def deserialize(self, data: bytes) -> bytes:
        return data


class Prepare(RawBody):
    """First of two stages: from JPEG to pixels."""

    def forward(self, data: bytes) -> np.ndarray:
        return picture.prepare(data)


class Infer(Worker):
    """Second of two stages: runs batches of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.session = picture.open_session(picture.THREADS)

    def forward(self, data: list[np.ndarray]) -> list[dict[str, Any]]:
        return [picture.top5(row) for row in picture.infer(self.session, np.stack(data))]


class InferOne(Infer):
    """Second of two stages, without batching: for a batch size of 1, Mosec passes single items."""

    def forward(self, data: np.ndarray) -> dict[str, Any]:
        return super().forward([data])[0]


class Classify(RawBody):
    """Both in one stage."""

    def __init__(self) -> None:
        super().__init__()
        self.session = picture.open_session(picture.THREADS)

    def forward(self, data: list[bytes]) -> list[dict[str, Any]]:
        batch = np.stack([picture.prepare(one) for one in data])
        return [picture.top5(row) for row in picture.infer(self.session, batch)]


class ClassifyOne(Classify):
    """Both in one stage, without batching."""

    def forward(self, data: bytes) -> dict[str, Any]:
        return super().forward([data])[0]


if __name__ == "__main__":
    server = Server()
    single = picture.MAX_BATCH_SIZE == 1
    batching = {"max_batch_size": picture.MAX_BATCH_SIZE, "max_wait_time": 1}  # ms
    if os.environ["BENCH_STAGES"] == "1":
        worker = ClassifyOne if single else Classify
        server.append_worker(worker, num=picture.WORKERS, **batching)
    else:
        server.append_worker(Prepare, num=picture.WORKERS)
        server.append_worker(InferOne if single else Infer, num=1, **batching)
    server.run()

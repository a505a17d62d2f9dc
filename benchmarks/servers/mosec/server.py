"""Mosec: raw bytes in, JSON out, as its documentation lays out a computer-vision service.

BENCH_STAGES=1 has workers that prepare and run a batch; 2 has a stage of workers that prepare and
one worker that runs batches.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import picture
from mosec import Server, Worker


class RawBody(Worker):
    """Takes the upload as it is; the default would parse JSON."""

    def deserialize(self, data: bytes) -> bytes:
        """Returns the body."""
        return data


class Prepare(RawBody):
    """First of two stages: from JPEG to pixels."""

    def forward(self, data: bytes) -> np.ndarray:
        """Prepares one picture."""
        return picture.prepare(data)


class Infer(Worker):
    """Second of two stages: runs batches of pixels."""

    def __init__(self) -> None:
        """Opens the session in the worker's own process."""
        super().__init__()
        self.session = picture.open_session(picture.THREADS)

    def forward(self, data: list[np.ndarray]) -> list[dict[str, Any]]:
        """Runs one batch."""
        return [picture.top5(row) for row in picture.infer(self.session, np.stack(data))]


class InferOne(Infer):
    """Second of two stages without batching: Mosec passes single items for a batch size of 1."""

    def forward(self, data: np.ndarray) -> dict[str, Any]:
        """Runs one picture."""
        return super().forward([data])[0]


class Classify(RawBody):
    """Both in one stage."""

    def __init__(self) -> None:
        """Opens the session in the worker's own process."""
        super().__init__()
        self.session = picture.open_session(picture.THREADS)

    def forward(self, data: list[bytes]) -> list[dict[str, Any]]:
        """Prepares and runs one batch."""
        batch = np.stack([picture.prepare(one) for one in data])
        return [picture.top5(row) for row in picture.infer(self.session, batch)]


class ClassifyOne(Classify):
    """Both in one stage, without batching."""

    def forward(self, data: bytes) -> dict[str, Any]:
        """Prepares and runs one picture."""
        return super().forward([data])[0]


if __name__ == "__main__":
    server = Server()
    single = picture.MAX_BATCH_SIZE == 1
    batching = {"max_batch_size": picture.MAX_BATCH_SIZE, "max_wait_time": 1}
    if os.environ["BENCH_STAGES"] == "1":
        worker = ClassifyOne if single else Classify
        server.append_worker(worker, num=picture.WORKERS, **batching)
    else:
        server.append_worker(Prepare, num=picture.WORKERS)
        server.append_worker(InferOne if single else Infer, num=1, **batching)
    server.run()

"""BentoML: a batchable API that takes image files, and one that takes the raw body of one picture."""

from __future__ import annotations

import os
from typing import Any

import bentoml
import numpy as np
import picture
from PIL.Image import Image


class Session:
    """What both services have in common."""

    def __init__(self) -> None:
        """Opens the session in the worker's own process."""
        self.session = picture.open_session(picture.THREADS)

    def answer(self, images: list[Image]) -> list[dict[str, Any]]:
        """Runs one batch."""
        batch = np.stack([picture.prepare_image(image) for image in images])
        return [picture.top5(row) for row in picture.infer(self.session, batch)]


_OPTIONS: Any = {
    "workers": picture.WORKERS,
    "traffic": {"timeout": 60, "max_concurrency": 4096},
    "logging": {"access": {"enabled": False}},
}

if os.environ["BENCH_BATCHING"] == "on":

    @bentoml.service(**_OPTIONS)
    class Classify(Session):
        """Adaptive batching; each request is a multipart form with one file."""

        @bentoml.api(batchable=True, max_batch_size=picture.MAX_BATCH_SIZE, max_latency_ms=60_000)
        def classify(self, images: list[Image]) -> list[dict[str, Any]]:
            """Answers several requests together."""
            return self.answer(images)

else:

    @bentoml.service(**_OPTIONS)
    class Classify(Session):
        """No batching; each request is the raw body."""

        @bentoml.api
        def classify(self, image: Image, /) -> dict[str, Any]:
            """Answers one request."""
            return self.answer([image])[0]

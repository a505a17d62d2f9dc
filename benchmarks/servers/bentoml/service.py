"""BentoML: a batchable API for image files, and one for the raw body of one picture."""

from __future__ import annotations

import os
from typing import Any

import bentoml
import numpy as np
import picture
from PIL.Image import Image


class Session:
    """The base of both services. Each worker process opens a session of its own."""

    def __init__(self) -> None:
        self.session = picture.open_session(picture.THREADS)

    def answer(self, images: list[Image]) -> list[dict[str, Any]]:
        batch = np.stack([picture.prepare_image(image) for image in images])
        return [picture.top5(row) for row in picture.infer(self.session, batch)]


_OPTIONS: Any = {
    "workers": picture.WORKERS,
    "traffic": {"timeout": 60, "max_concurrency": 4096},  # refuses nothing that the others queue
    "logging": {"access": {"enabled": False}},
}

if os.environ["BENCH_BATCHING"] == "on":

    @bentoml.service(**_OPTIONS)
    class Classify(Session):
        """With adaptive batching. Each request is a multipart form with one file."""

        # BentoML refuses a request that it expects to exceed `max_latency_ms`; 60 s avoids that.
        @bentoml.api(batchable=True, max_batch_size=picture.MAX_BATCH_SIZE, max_latency_ms=60_000)
        def classify(self, images: list[Image]) -> list[dict[str, Any]]:
            return self.answer(images)

else:

    @bentoml.service(**_OPTIONS)
    class Classify(Session):
        """Without batching. Each request is the raw body."""

        @bentoml.api
        def classify(self, image: Image, /) -> dict[str, Any]:
            return self.answer([image])[0]

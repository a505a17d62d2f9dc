"""Ray Serve: a deployment with `@serve.batch`, which gets raw bodies from Starlette's requests."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import picture
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(
    num_replicas=picture.WORKERS,
    max_ongoing_requests=256,  # enough to fill batches; the default of 5 is less than one
    # Ray counts CPUs but pins nothing. Half a core each leaves room for its other actors.
    ray_actor_options={"num_cpus": 0.5},
)
class Classify:
    """A replica, with a session of its own."""

    def __init__(self) -> None:
        self.session = picture.open_session(picture.THREADS)

    @serve.batch(max_batch_size=picture.MAX_BATCH_SIZE, batch_wait_timeout_s=0.001)
    async def classify(self, uploads: list[bytes]) -> list[dict[str, Any]]:
        batch = np.stack([picture.prepare(data) for data in uploads])
        return [picture.top5(row) for row in picture.infer(self.session, batch)]

    async def __call__(self, request: Request) -> dict[str, Any]:
        return await self.classify(await request.body())


if __name__ == "__main__":
    ray.init(
        include_dashboard=False,
        object_store_memory=100_000_000,  # pictures are small; the default is 30% of the memory
        log_to_driver=False,
        _temp_dir="/tmp/ray",  # noqa: S108 - Ray's own default; its sockets need a short path
    )
    serve.start(http_options={"host": "127.0.0.1", "port": picture.PORT})
    serve.run(Classify.bind(), route_prefix="/")
    # `serve.run` returns at once, and Ray ends with the process that started it.
    while True:
        time.sleep(60)

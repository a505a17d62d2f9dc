"""FastAPI as in tutorials: one handler that decodes, runs and answers."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import picture
import uvicorn
from fastapi import FastAPI, Request

app = FastAPI()
session = picture.open_session()


def answer(data: bytes) -> dict[str, Any]:
    batch = np.expand_dims(picture.prepare(data), 0)
    return picture.top5(picture.infer(session, batch)[0])


async def body(request: Request) -> bytes:
    return await request.body()


if os.environ["BENCH_HANDLER"] == "async":

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        # Blocks the event loop for the whole request, as most tutorials do.
        return answer(await request.body())

else:
    from fastapi import Depends

    @app.post("/classify")
    def classify_in_thread(data: bytes = Depends(body)) -> dict[str, Any]:
        # FastAPI runs plain functions on its thread pool.
        return answer(data)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=picture.PORT, access_log=False)

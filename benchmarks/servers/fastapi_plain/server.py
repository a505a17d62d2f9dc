"""FastAPI as a tutorial writes it: one handler that decodes, runs and answers."""

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
    """Does all the work of one request."""
    batch = np.expand_dims(picture.prepare(data), 0)
    return picture.top5(picture.infer(session, batch)[0])


async def body(request: Request) -> bytes:
    """Reads the whole upload."""
    return await request.body()


if os.environ["BENCH_HANDLER"] == "async":

    @app.post("/classify")
    async def classify(request: Request) -> dict[str, Any]:
        """Answers on the event loop, the commonest tutorial."""
        return answer(await request.body())

else:
    from fastapi import Depends

    @app.post("/classify")
    def classify_in_thread(data: bytes = Depends(body)) -> dict[str, Any]:
        """Answers on FastAPI's thread pool."""
        return answer(data)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=picture.PORT, access_log=False)

"""FastAPI tuned by hand: uvloop, httptools, one-thread runs, a thread or process per core.

With BENCH_BATCH above 1, pictures that queue during a run are run together, with the twenty lines
of batching that hand-written servers have.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import picture
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

session = picture.open_session(intra_op_threads=1)
pool = ThreadPoolExecutor(picture.THREADS)
queue: asyncio.Queue[tuple[np.ndarray, asyncio.Future[Any]]] = asyncio.Queue()


async def run_batches() -> None:
    loop = asyncio.get_running_loop()
    while True:
        entries = [await queue.get()]
        # Takes what is there without waiting: the batch fills while the last one runs.
        while len(entries) < picture.MAX_BATCH_SIZE and not queue.empty():
            entries.append(queue.get_nowait())

        batch = np.stack([row for row, _ in entries])
        rows = await loop.run_in_executor(pool, picture.infer, session, batch)
        for (_, future), row in zip(entries, rows, strict=True):
            # The handler may have been cancelled meanwhile.
            if not future.done():
                future.set_result(row)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    runners = [asyncio.create_task(run_batches()) for _ in range(picture.THREADS)]
    yield
    for one in runners:
        one.cancel()


app = FastAPI(lifespan=lifespan)


def answer(data: bytes) -> dict[str, Any]:
    return picture.top5(picture.infer(session, picture.prepare(data)[None])[0])


@app.post("/classify")
async def classify(request: Request) -> JSONResponse:
    # Returning a response object skips FastAPI's serialisation.
    data = await request.body()
    loop = asyncio.get_running_loop()
    if picture.MAX_BATCH_SIZE == 1:
        return JSONResponse(await loop.run_in_executor(pool, answer, data))

    row = await loop.run_in_executor(pool, picture.prepare, data)
    future: asyncio.Future[Any] = loop.create_future()
    queue.put_nowait((row, future))
    return JSONResponse(picture.top5(await future))


if __name__ == "__main__":
    uvicorn.run(
        "server:app",
        host="127.0.0.1",
        port=picture.PORT,
        workers=picture.WORKERS,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )

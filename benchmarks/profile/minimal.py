"""The minimal front: the least that a server in Python can do between a socket and a lane.

    python -m benchmarks.profile.minimal --graph FILE --port PORT

asyncio, uvloop and httptools, one queue, one lane per core as a thread, this project's preparation,
its graph and a JSON answer with the top 5. It checks nothing, limits nothing, logs nothing and counts
nothing, so it shows what these cost, and it is not a server to use.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, cast

import httptools
import numpy as np
import onnxruntime
import uvloop
from numpy.typing import NDArray

from benchmarks.contenders import CORES
from contract.manifest import Manifest, parse_manifest
from contract.predictions import DEFAULT_TOP_K, top_k
from contract.preprocessing import read_input

Rows = NDArray[np.float32]  # (N, C)
Work = Callable[[list[bytes]], Rows]
Batch = list[tuple[bytes, "asyncio.Future[Any]"]]

_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


def pictures_to_rows(graph: Path, manifest: Manifest) -> Work:
    """Opens the graph with one thread; returns what a lane does with a batch of image files."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    outputs, name = [manifest.graph.scores.name], manifest.graph.input.name

    def work(files: list[bytes]) -> Rows:
        rows: Rows = session.run(
            outputs, {name: np.stack([read_input(file, manifest) for file in files])}
        )[0]
        return rows

    return work


def waiting(work: Work, seconds: float) -> Work:
    """Returns work that waits without using a core; only the first batch is really run."""
    known: list[NDArray[np.float32]] = []

    def wait(files: list[bytes]) -> Rows:
        if not known:
            known.append(work(files[:1])[0])
        time.sleep(seconds)
        return np.stack([known[0]] * len(files))

    return wait


class Front:
    """One queue and the lanes behind it; used on the event loop only.

    An idle lane takes its even share of what waits, but no more than `most` pictures.
    """

    def __init__(self, works: list[Work], most: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[bytes, asyncio.Future[Any]]] = deque()
        self._most = most
        self._idle: list[SimpleQueue[Batch]] = [SimpleQueue() for _ in works]
        for inbox, work in zip(self._idle, works, strict=True):
            threading.Thread(
                target=self._serve, args=(inbox, work), name="lane", daemon=True
            ).start()

    def submit(self, file: bytes) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._waiting.append((file, future))
        self._dispatch()
        return future

    def _dispatch(self) -> None:
        while self._idle and self._waiting:
            share = min(self._most, -(-len(self._waiting) // len(self._idle)))
            self._idle.pop().put([self._waiting.popleft() for _ in range(share)])

    def _done(self, inbox: SimpleQueue[Batch], batch: Batch, rows: Rows) -> None:
        for (_, future), row in zip(batch, rows, strict=True):
            future.set_result(row)
        self._idle.append(inbox)
        self._dispatch()

    def _serve(self, inbox: SimpleQueue[Batch], work: Work) -> None:
        while True:
            batch = inbox.get()
            rows = work([file for file, _ in batch])
            self._loop.call_soon_threadsafe(self._done, inbox, batch, rows)


class Connection(asyncio.Protocol):
    """One keep-alive connection, with one request at a time."""

    _transport: asyncio.Transport

    def __init__(self, front: Front, manifest: Manifest) -> None:
        self._front = front
        self._labels = manifest.labels
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, piece: bytes) -> None:
        self._body.append(piece)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        self._front.submit(body).add_done_callback(self._answer)

    def _answer(self, future: asyncio.Future[Any]) -> None:
        predictions = [
            {"label": self._labels[index].name, "index": index, "probability": round(value, 6)}
            for index, value in top_k(future.result(), DEFAULT_TOP_K)
        ]
        text = json.dumps({"predictions": predictions}).encode()
        if not self._transport.is_closing():
            self._transport.write(_HEAD % len(text) + text)


async def serve(options: argparse.Namespace) -> None:
    manifest = parse_manifest(options.graph.with_name("manifest.json").read_bytes())
    if options.idle_ms is None:
        # A session of its own for each lane, so that lanes share no allocator.
        works = [pictures_to_rows(options.graph, manifest) for _ in range(options.lanes)]
    else:
        work = pictures_to_rows(options.graph, manifest)
        works = [waiting(work, options.idle_ms / 1e3)] * options.lanes
    front = Front(works, options.most)

    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(front, manifest), "127.0.0.1", options.port
    )
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile.minimal")
    parser.add_argument("--graph", type=Path, required=True, help="beside it, its manifest.json")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--lanes", type=int, default=CORES)
    parser.add_argument("--most", type=int, default=4, help="pictures in a batch")
    parser.add_argument("--idle-ms", type=float, help="lanes wait this long for each batch")
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()

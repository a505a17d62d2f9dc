"""What each stage of a request costs alone: `python -m benchmarks.profile.stages --graph FILE`.

The service's own functions are called one after the other in this process, without sockets, and the
CPU time of their thread counts. Prints JSON: for each stage the median over the photographs, in us.

The code is warm here. Between runs of a network, which push it out of the caches, each line costs
several times as much; `threads` measures that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final
from unittest import mock

import numpy as np
import uvicorn
import uvloop
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.server import ServerState

from benchmarks.contenders import Setting, http_request
from benchmarks.photos import default_folder
from benchmarks.profile.photos import small_photos
from contract.images import inspect
from contract.predictions import TopK, top_k
from contract.preprocessing import decode_file, to_input
from service.api.dialects import native
from service.api.payload import check_headers, parse_body, query_options, read_body
from service.api.schemas import classification_fields
from service.app import create_app
from service.batching import thread_lane
from service.batching.lane import RowResult
from service.batching.work import Preparation, work_on
from service.http import edge
from service.http.connection.protocol import BoundedHttpProtocol
from service.http.scope import set_request_info
from service.models.engine import Run
from service.serving.backend import image_limits
from service.serving.classifier import Classification, StageTimes
from service.settings import Settings
from service.system.logs import JsonFormatter, LogWriter, RequestRecord

# In the order of a request. The last ones run on other threads than the event loop.
ON_LOOP: Final = (
    "parse",
    "head checks, options, deadline",
    "admission",
    "body",
    "header walk",
    "hand-over",
    "JSON",
    "metrics",
    "log record",
    "write",
)
ON_LANE: Final = ("decode", "resize", "run", "top-k")
RUN_OF_8: Final = "run, a picture of 8"
LOG_LINE: Final = "log line, on the writer's thread"
LOOP_WHOLE, LANE_WHOLE = "whole, event loop", "whole, lane"
STAGES: Final = {"event loop": ON_LOOP, "lane": ON_LANE}

_REPEAT: Final = 10  # of calls that take microseconds: reading the clock takes half of one
_BATCH: Final = 8
_NEVER_S: Final = 600.0

_LOG_FIELDS: Final = {
    "request_id": "f4b6466f340b1017",
    "method": "POST",
    "route": "/v1/classify",
    "status": 200,
    "duration_ms": 12.34,
    "client": "127.0.0.1",
}
_RANKING: Final = [(index, 0.123456) for index in range(TopK().k)]

Times = dict[str, list[float]]  # us, by stage


class FakeTransport(asyncio.Transport):
    """A connection that keeps nothing of what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()

    def write(self, data: Any) -> None:
        assert data.startswith(b"HTTP/1.1 200"), data[:300]
        self.written.set()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 80)}.get(name, default)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Stages:
    """A running application and one connection to it."""

    def __init__(self, app: Any, settings: Settings, times: Times) -> None:
        self._app = app
        self._times = times
        self._dependencies = app.state.service.dependencies
        self._served = self._dependencies.classifier.active.find()
        self._limits = image_limits(settings)

        config = uvicorn.Config(
            app,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=settings.keep_alive_s,
        )
        self._transport = FakeTransport()
        self._protocol = BoundedHttpProtocol(
            config, ServerState(), {}, header_timeout_s=settings.receive_timeout_s
        )
        self._protocol.connection_made(self._transport)

    async def whole(self, request: bytes) -> None:
        """Answers one request, from its bytes to the write of the response."""
        self._transport.written.clear()

        def timed_work(job: Any, clock: Any) -> None:
            with self._timed(LANE_WHOLE):  # the clock is that of the lane's thread
                work_on(job, clock)

        with mock.patch.object(thread_lane, "work_on", timed_work), self._timed(LOOP_WHOLE):
            self._protocol.data_received(request)
            # Log record and metrics follow the write without a turn of the loop in between.
            await self._transport.written.wait()

    def prepare_and_run(self, photo: bytes) -> None:
        """The stages on a lane."""
        version = self._served.version
        manifest = version.manifest
        file = inspect(photo, self._limits)

        with self._timed("decode"):
            picture = decode_file(file, manifest.preprocessing)
        with self._timed("resize"):
            row = to_input(picture, manifest)
        with self._timed("run"):
            scores = version.engine.run(row[None], Run())
        self._repeat("top-k", lambda: top_k(scores[0], TopK().k, TopK().min_probability))

        if len(self._times[RUN_OF_8]) < len(self._times["run"]) // _BATCH + 1:
            batch = np.stack([row] * _BATCH)
            with self._timed(RUN_OF_8, _BATCH):
                version.engine.run(batch, Run())

    async def on_loop(self, request: bytes, photo: bytes) -> None:
        """The stages on the event loop."""
        dependencies, served, protocol = self._dependencies, self._served, self._protocol

        # The connection's task would run the application.
        with mock.patch.object(protocol, "_start_asgi_task", new=_nothing), self._timed("parse"):
            protocol.data_received(request)
        cycle, scope = protocol.cycle, protocol.cycle.scope
        asgi = Request(scope, cycle.receive)  # type: ignore[arg-type]
        set_request_info(scope, "0", time.monotonic())
        routes = self._app.edge._app

        def check() -> Any:
            edge.request_id_of_headers(scope["headers"])
            scope["route"] = routes._find(scope)  # type: ignore[typeddict-unknown-key]
            query_options(scope["query_string"])
            with dependencies.classifier.active.find():
                check_headers(asgi)
                return dependencies.deadlines.of(asgi)

        self._repeat("head checks, options, deadline", check)
        deadline = check()

        def admit() -> None:
            with dependencies.admission.slot() as slot:
                expected_s = served.backend.expected_s(served.version)
                dependencies.admission.check_wait(expected_s, deadline.remaining_s())
                slot.add_bytes(len(photo))
                slot.add_images(1)

        self._repeat("admission", admit)

        with dependencies.admission.slot() as slot, self._timed("body"):
            body = await read_body(asgi, slot, dependencies.body_limits)
            await parse_body(body, asgi.headers["content-type"], dependencies.body_limits)

        self._repeat("header walk", lambda: inspect(body, self._limits))
        row = await self._hand_over(body)
        times = StageTimes(0.001, 0.001, 0.001, 0.001, 0.001, 1)
        answer = Classification(served.version.manifest, [row.ranking], times)

        def respond() -> Response:
            return Response(
                to_json(classification_fields(answer, "0", as_list=False)),
                headers={"Server-Timing": native._server_timing(answer, 0.001)},
                media_type="application/json",
            )

        self._repeat("JSON", respond)
        self._record(scope, answer)

        response = respond()
        with self._timed("write"):
            out = edge._Response(
                cycle.send,  # type: ignore[arg-type]
                "0",
                time.monotonic(),
                draining=lambda: False,
            )
            await response(scope, cycle.receive, out.send)  # type: ignore[arg-type]

    async def _hand_over(self, body: bytes) -> Any:
        # With a lane that has the answer ready: what remains is the way to its thread and back.
        version, deadline_s = self._served.version, time.monotonic() + _NEVER_S
        recipe = Preparation(inspect(body, self._limits), version.manifest, deadline_s)
        with (
            mock.patch.object(thread_lane, "work_on", _answer_at_once),
            self._timed("hand-over"),
        ):
            return await self._served.backend.batcher.submit(
                version, recipe, deadline_s, wanted=TopK()
            )

    def _record(self, scope: Any, answer: Classification) -> None:
        access, edge_of_app = edge.log, self._app.edge

        def metrics() -> None:
            native._count(self._dependencies, answer, 0.001)
            edge_of_app._record(scope, "0", 200, 0.01)

        # The record is written in the same function as the metrics, so it is a difference.
        self._repeat("with log record", metrics)
        with mock.patch.object(access, "disabled", new=True):
            self._repeat("metrics", metrics)
        with_record, without = self._times["with log record"], self._times["metrics"]
        self._times["log record"].append(with_record[-1] - without[-1])

        record = RequestRecord(access.name, logging.INFO, _LOG_FIELDS)
        formatter = JsonFormatter()
        self._repeat(LOG_LINE, lambda: formatter.format(record))

    def _repeat(self, stage: str, call: Callable[[], object]) -> None:
        with self._timed(stage, _REPEAT):
            for _ in range(_REPEAT):
                call()

    @contextmanager
    def _timed(self, stage: str, n: int = 1) -> Iterator[None]:
        before_s = time.thread_time()
        yield
        self._times[stage].append(1e6 * (time.thread_time() - before_s) / n)


def _nothing(*_: object) -> None:
    pass  # not a `Mock`, because a call of one takes longer than some stages


def _answer_at_once(job: Any, clock: Callable[[], float]) -> None:
    job.started_s = clock()
    job.outcomes.extend((item, RowResult(_RANKING, 0.001, 0.001, 1, 0.001)) for item in job.items)
    job.runs.append((len(job.items), 0.001))
    job.work_s = 0.001


async def measure(graph: Path, photos: Sequence[bytes], warm_up: int) -> dict[str, Any]:
    """Returns the median of every stage in us, its quartiles, and the stages of each thread."""
    # One lane and one thread: the time of a run on all cores is spread over several threads.
    with mock.patch("service.app.usable_cpus", return_value=1):
        settings = Settings(models_dir=graph.parents[2], models_poll_s=0)
        app: Any = create_app(settings)

    times: Times = defaultdict(list)
    setting = Setting("", {}, "/v1/classify")
    async with app.router.lifespan_context(app):
        stages = Stages(app, settings, times)
        for number, photo in zip(count(-warm_up), [*photos[:warm_up], *photos]):
            if number == 0:
                times.clear()
            request = http_request(setting, photo)
            stages.prepare_and_run(photo)
            await stages.on_loop(request, photo)
            await stages.whole(request)

    return summary(times)


def summary(times: Times) -> dict[str, Any]:
    us = {stage: median(found) for stage, found in times.items()}
    for thread, stages in STAGES.items():
        # Of medians: photo by photo, the difference of two noisy numbers would be noisier still.
        us[f"rest, {thread}"] = us[f"whole, {thread}"] - sum(us[stage] for stage in stages)
    quartiles = {stage: np.percentile(found, (25, 75)).tolist() for stage, found in times.items()}
    return {"us": us, "quartiles": quartiles} | {key: list(value) for key, value in STAGES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile.stages")
    parser.add_argument("--graph", type=Path, required=True, help="<name>/<version>/model.onnx")
    parser.add_argument("--photos", type=Path, default=default_folder())
    parser.add_argument("--max-photos", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=20, help="pictures before the first counts")
    options = parser.parse_args()
    photos = small_photos(options.photos)[: options.max_photos]

    # The service's own logging, to nowhere: standard output is for the result.
    with Path(os.devnull).open("w") as nowhere:
        logs = LogWriter("info", nowhere)
        logs.start()
        found = uvloop.run(measure(options.graph.resolve(), photos, options.warm_up))
        logs.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main()

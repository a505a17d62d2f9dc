"""A polite client beside greedy ones: its latency alone, and while another client floods.

    python benchmarks/reliability/fairness.py --seconds 5 --runs 5 --apart

The polite client posts one photograph after the other on one connection from 127.0.0.2. The greedy
client is at 127.0.0.3, in a process of its own, and does one of these at a time:

    gets      200 connections, each with 50 pipelined requests for labels at any time
    hog       400 connections that post photographs as fast as they are answered
    lists     32 connections that post requests of 32 photographs
    overload  photographs at ten times the rate of `peak`, sent by `convserve loadtest`

`peak` is the greedy client alone with 32 connections. Meanwhile a probe asks for /livez ten times a
second. Prints one line of JSON for each phase, with latencies in ms, and a table of all runs. On a machine
whose cores the clients share with the service, only the ratios within one run mean something; `--apart`
gives each its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Final

ROOT = Path(__file__).parents[2]
PHOTO = (ROOT / "examples" / "cat.jpg").read_bytes()
POLITE, GREEDY, PROBE, SENDER = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.1"
LIST_IMAGES: Final = 32
_OVERLOAD: Final = 10
_BOUNDARY: Final = b"fairness"
_TIMEOUT_S: Final = 60.0
_FILL_S: Final = 2.0
_WARM_UP_S: Final = 2.0


def post(body: bytes, kind: bytes) -> bytes:
    head = (
        b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    )
    return head % (kind, len(body)) + body


def form(photo: bytes, count: int) -> bytes:
    part = b'--%s\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\n' % _BOUNDARY
    return (part + photo + b"\r\n") * count + b"--%s--\r\n" % _BOUNDARY


ONE = post(PHOTO, b"image/jpeg")
LIST = post(form(PHOTO, LIST_IMAGES), b"multipart/form-data; boundary=" + _BOUNDARY)
LABELS = b"GET /v1/models/efficientnet_lite0/labels HTTP/1.1\r\nHost: x\r\n\r\n"
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


class Tally:
    """Answers by status, and their latencies in seconds."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.latencies_s: dict[int, list[float]] = {}

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] += 1
        self.latencies_s.setdefault(status, []).append(seconds)

    def summary(self) -> dict[str, Any]:
        return {
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            **{
                f"{name}_{status}_ms": round(1e3 * at(sorted(times)), 1)
                for status, times in sorted(self.latencies_s.items())
                for name, at in (("p50", median), ("p99", _p99))
            },
        }


def _p99(ordered: list[float]) -> float:
    return ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]


async def read_answer(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split(None, 2)[1])


async def connect(port: int, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))


async def ask(
    port: int, address: str, request: bytes, end_s: float, tally: Tally, pause_s: float = 0.0
) -> None:
    """Sends one request after the other on one connection."""
    reader, writer = await connect(port, address)
    while time.monotonic() < end_s:
        started_s = time.monotonic()
        writer.write(request)
        tally.add(await read_answer(reader), time.monotonic() - started_s)
        await asyncio.sleep(pause_s)
    writer.close()


async def pipeline(port: int, end_s: float, tally: Tally, depth: int = 50) -> None:
    reader, writer = await connect(port, GREEDY)
    writer.write(LABELS * depth)
    while time.monotonic() < end_s:
        tally.add(await read_answer(reader), 0.0)
        writer.write(LABELS)
    writer.close()


def overload(port: int, seconds: float, rate: float) -> Tally:
    """Posts photographs at a rate, whatever the answers; a sender in Python would be the limit itself."""
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, "-m", "convserve", "loadtest", "run", f"http://127.0.0.1:{port}")
        options = (
            "--rate",
            str(rate),
            "--duration",
            f"{seconds:g}s",
            "--output",
            folder,
            "--warmup",
            "1s",
        )
        photo = str(ROOT / "examples" / "cat.jpg")
        subprocess.run([*command, photo, *options], cwd=ROOT, stdout=subprocess.DEVNULL)  # noqa: S603
        summary = json.loads(Path(folder, "result.json").read_text("utf-8"))["summary"]
    tally = Tally()
    tally.statuses.update({200: summary["n_ok"], 503: summary["n_refused"]})
    return tally


Greed = Callable[[int, float, Tally], Coroutine[Any, Any, None]]


def _many(count: int, work: Callable[[int, float, Tally], Coroutine[Any, Any, None]]) -> Greed:
    async def run(port: int, end_s: float, tally: Tally) -> None:
        tasks = [asyncio.create_task(work(port, end_s, tally)) for _ in range(count)]
        await asyncio.wait(tasks, timeout=max(0.0, end_s - time.monotonic()) + 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    return run


GREEDS: Final[dict[str, Greed]] = {
    "gets": _many(200, pipeline),
    "hog": _many(400, lambda port, end_s, tally: ask(port, GREEDY, ONE, end_s, tally)),
    "lists": _many(32, lambda port, end_s, tally: ask(port, GREEDY, LIST, end_s, tally)),
    "peak": _many(32, lambda port, end_s, tally: ask(port, GREEDY, ONE, end_s, tally)),
}


def be_greedy(kind: str, port: int, seconds: float, rate: float, results: Connection) -> None:
    tally = Tally()
    results.send("started")
    end_s = time.monotonic() + seconds

    if kind == "overload":
        tally = overload(port, seconds, rate)
    else:
        asyncio.run(GREEDS[kind](port, end_s, tally))
    results.send(tally)


async def phase(kind: str, port: int, seconds: float, rate: float) -> dict[str, Any]:
    """Runs one phase; `alone` has no greedy client, and `peak` no polite one."""
    greedy, sent_s = None, seconds + _FILL_S
    results, to_parent = multiprocessing.Pipe(duplex=False)
    if kind != "alone":
        arguments = (kind, port, sent_s, rate, to_parent)
        greedy = multiprocessing.get_context("spawn").Process(target=be_greedy, args=arguments)
        greedy.start()
        await asyncio.to_thread(results.recv)
        # It connects, and fills the queue. The sender takes longer: it warms up.
        await asyncio.sleep(_FILL_S if kind != "overload" else _FILL_S + _WARM_UP_S)

    polite, live, refused = Tally(), Tally(), Tally()
    end_s = time.monotonic() + seconds
    clients = [ask(port, PROBE, LIVE, end_s, live, pause_s=0.1)]
    if kind == "overload":  # one of those that are refused
        clients.append(ask(port, SENDER, ONE, end_s, refused, pause_s=0.02))
    if kind != "peak":
        clients.append(ask(port, POLITE, ONE, end_s, polite, pause_s=0.02))
    async with asyncio.timeout(seconds + _TIMEOUT_S):
        await asyncio.gather(*clients)

    found: dict[str, Any] = {"phase": kind, "polite": polite.summary(), "livez": live.summary()}
    if greedy is not None:
        tally = await asyncio.to_thread(results.recv)
        greedy.join()
        pictures = LIST_IMAGES if kind == "lists" else 1
        found["greedy"] = tally.summary()
        if kind == "overload":
            found["greedy"] = refused.summary() | {"statuses": found["greedy"]["statuses"]}
        found["greedy"]["answered_per_s"] = round(tally.statuses[200] * pictures / sent_s, 1)
    print(json.dumps(found), flush=True)
    return found


async def measure(port: int, seconds: float, kinds: list[str]) -> dict[str, dict[str, float]]:
    """Runs all phases once; returns the figures of each kind."""
    alone = await phase("alone", port, seconds, 0)
    peak = (await phase("peak", port, seconds, 0))["greedy"]["answered_per_s"]
    figures = {"alone": {"polite p99, ms": alone["polite"]["p99_200_ms"], "peak, pictures/s": peak}}
    for kind in kinds:
        found = await phase(kind, port, seconds, _OVERLOAD * peak)
        polite, live = found["polite"], found["livez"]
        one = figures[kind] = {
            "polite answers": polite["statuses"].get("200", 0),
            "polite refused": sum(polite["statuses"].values()) - polite["statuses"].get("200", 0),
            "/livez p99, ms": live.get("p99_200_ms", math.inf),
        }
        if "p99_200_ms" in polite:
            one["polite p99, ms"] = polite["p99_200_ms"]
            one["to alone"] = round(polite["p99_200_ms"] / alone["polite"]["p99_200_ms"], 2)
        if "p50_503_ms" in found["greedy"]:
            one["refusal p50, ms"] = found["greedy"]["p50_503_ms"]
            one["refusal p99, ms"] = found["greedy"]["p99_503_ms"]
        if kind != "gets":
            answered_per_s = found["greedy"]["answered_per_s"] + one["polite answers"] / seconds
            one["goodput to peak"] = round(answered_per_s / peak, 3)
    return figures


def report(runs: list[dict[str, dict[str, float]]]) -> None:
    """Prints the median and the range of each figure over all runs."""
    print(
        f"\n| greedy client | figure | median of {len(runs)} | smallest | largest |\n|---|---|---|---|---|"
    )
    for kind, figures in runs[0].items():
        for name in figures:
            values = [run[kind][name] for run in runs if name in run[kind]]
            print(f"| {kind} | {name} | {median(values):g} | {min(values):g} | {max(values):g} |")


def run(
    seconds: float, kinds: list[str], models_dir: Path, *, apart: bool
) -> dict[str, dict[str, float]]:
    """Starts a service and measures it once."""
    command = (sys.executable, "-m", "convserve", "serve", "--port", "0")
    cpus = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryFile() as log:
        if apart:
            os.sched_setaffinity(0, cpus[:1])
        server = subprocess.Popen(  # noqa: S603
            [*command, "--models-dir", str(models_dir)], cwd=ROOT, stderr=log, stdout=log
        )
        if apart:
            os.sched_setaffinity(0, cpus[1:])
        try:
            return asyncio.run(measure(_port_of(log), seconds, kinds))
        finally:
            os.sched_setaffinity(0, cpus)
            server.terminate()
            server.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each phase")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", default=["gets", "hog", "lists", "overload"])
    parser.add_argument(
        "--apart", action="store_true", help="the service on one core, the clients on the others"
    )
    parser.add_argument(
        "--models-dir", type=Path, default=ROOT / "models", help="`gets` needs efficientnet_lite0"
    )
    given = parser.parse_args()

    report(
        [
            run(given.seconds, given.kinds, given.models_dir.resolve(), apart=given.apart)
            for _ in range(given.runs)
        ]
    )
    return 0


def _port_of(log: Any) -> int:
    end_s = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < end_s:
        log.seek(0)
        if found := re.search(rb"http://127\.0\.0\.1:(\d+)", log.read()):
            return int(found[1])
        time.sleep(0.1)
    raise TimeoutError("the service did not start")


if __name__ == "__main__":
    sys.exit(main())

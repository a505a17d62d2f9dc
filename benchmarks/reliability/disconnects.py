"""Resets connections at random points while other clients go on, and checks for leaks.

    python benchmarks/reliability/disconnects.py --breaks 10000

A client opens a connection, sends a random part of a request (of its head, of its body, or all of
it) and resets the connection, at once or a moment later. Two closed-loop clients post the same
photograph meanwhile. Descriptors, threads, memory and the photograph's probabilities are compared
before and after. Exits with 1 if descriptors or threads grew, an answer changed, another client got
anything but 200, or the log has a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PHOTO = (ROOT / "examples" / "cat.jpg").read_bytes()
HEAD = (
    b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
    b"Content-Length: %d\r\n\r\n" % len(PHOTO)
)
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on with 0 s: closing sends a reset
_AT_ONCE = 64  # broken connections at a time


async def break_connection(port: int, chance: random.Random) -> None:
    request = HEAD + PHOTO
    # The body is far longer than the head, so a plain random cut would hardly ever hit the head.
    ends = (len(HEAD), len(request), len(request))
    end = chance.choice(ends)
    sent = request[: end if chance.random() < 0.3 else chance.randrange(end)]

    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    await asyncio.sleep(chance.choice((0, 0, 0.001, 0.02)))
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


async def ask(port: int) -> tuple[int, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD + PHOTO)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    body = json.loads(await reader.readexactly(length))
    writer.close()
    return int(head.split()[1]), body.get("predictions")


def process_figures(pid: int) -> dict[str, Any]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    return {
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(facts["Threads"]),
        "memory_mb": int(facts["VmRSS"].split()[0]) // 1024,
    }


async def measure(port: int, pid: int, breaks: int) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Returns the process's figures before and after, and the other clients' statuses."""
    # Threads and buffers that appear with the first requests are no leak.
    for _ in range(20):
        await ask(port)
    before = {"answer": (await ask(port))[1], **process_figures(pid)}

    chance, statuses, over = random.Random(0), Counter[int](), asyncio.Event()  # noqa: S311

    async def keep_asking() -> None:
        while not over.is_set():
            statuses[(await ask(port))[0]] += 1

    others = [asyncio.create_task(keep_asking()) for _ in range(2)]
    for done in range(0, breaks, _AT_ONCE):
        n = min(_AT_ONCE, breaks - done)
        await asyncio.gather(
            *(break_connection(port, chance) for _ in range(n)), return_exceptions=True
        )

    over.set()
    await asyncio.gather(*others)
    await asyncio.sleep(12)  # longer than the service waits for a connection's head
    return before, {"answer": (await ask(port))[1], **process_figures(pid)}, statuses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--breaks", type=int, default=10_000)
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir(), "disconnects.log"))
    arguments = parser.parse_args()

    with arguments.log.open("w+") as log:
        command = [sys.executable, "-m", "convserve", "serve", "--port", "0"]
        service = subprocess.Popen(command, cwd=ROOT, stdout=log)  # noqa: S603
        try:
            # The log says where the service listens, since port 0 lets the system choose.
            port = 0
            while not port:
                time.sleep(0.05)
                served = [
                    line for line in arguments.log.read_text().splitlines() if '"url"' in line
                ]
                port = int(json.loads(served[0])["url"].rpartition(":")[2]) if served else 0
            began_s = time.monotonic()
            before, after, statuses = asyncio.run(measure(port, service.pid, arguments.breaks))
        finally:
            service.kill()
            service.wait()

    tracebacks = arguments.log.read_text().count("traceback")
    same = before.pop("answer") == after.pop("answer")
    print(f"{arguments.breaks} broken connections in {time.monotonic() - began_s:.0f} s")
    print(f"before {before}\nafter  {after}")
    print(f"others' answers {dict(statuses)}, same answer {same}, tracebacks {tracebacks}")

    no_leak = (
        after["descriptors"] <= before["descriptors"] and after["threads"] <= before["threads"]
    )
    return 0 if no_leak and same and not tracebacks and set(statuses) == {200} else 1


if __name__ == "__main__":
    sys.exit(main())

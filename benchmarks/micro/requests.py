"""Sends requests through an ASGI application, without sockets."""

from __future__ import annotations

import asyncio
from typing import Any


async def send(app: Any, method: str, path: str, body: bytes) -> None:
    """Sends one request; raises RuntimeError unless the answer is 200."""
    statuses: list[int] = []
    pieces = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if not pieces:
            await asyncio.Event().wait()  # a client that stays connected sends nothing more
        return pieces.pop()

    async def record(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"image/jpeg")],
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
    }

    await app(scope, receive, record)
    if statuses != [200]:
        raise RuntimeError(f"{path} answered {statuses}")

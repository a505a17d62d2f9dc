"""Drives an application message by message, which an HTTP client cannot do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


async def call(app: Any, chunks: list[bytes], content_type: str, path: str) -> list[dict[str, Any]]:
    """Posts a body in these pieces; returns the messages that the application sent.

    If the last piece is not empty, the client disconnects after it.
    """
    sent: list[dict[str, Any]] = []
    queue = list(chunks)
    disconnects = chunks[-1] != b""

    async def receive() -> dict[str, Any]:
        if not queue:
            if not disconnects:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}
        return {
            "type": "http.request",
            "body": queue.pop(0),
            "more_body": disconnects or bool(queue),
        }

    async def send(message: Any) -> None:
        sent.append(message)

    await app(_scope(content_type, path), receive, send)
    return sent


async def call_and_disconnect(
    app: Any, body: bytes, waiting: Callable[[], object]
) -> list[dict[str, Any]]:
    """Posts a picture and disconnects once `waiting` is true; returns the messages sent."""
    sent: list[dict[str, Any]] = []
    queue = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        while not queue and not waiting():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)
        return queue.pop() if queue else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(_scope("image/png", "/v1/classify"), receive, send)
    return sent


def _scope(content_type: str, path: str) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"test"), (b"content-type", content_type.encode())],
        "server": ("test", 80),
        "client": ("test", 1),
    }

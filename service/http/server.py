"""Runs the application in uvicorn and stops it in stages, so that no accepted request is lost.

SIGTERM: /readyz fails for `drain_s` while requests are still accepted, so that load balancers stop
sending them. Then the listening socket closes, requests in flight finish within `grace_s`, and the
process exits with status 0. SIGINT skips the drain; a second signal exits at once. SIGHUP polls the
model repository now instead of at the next interval.

The admin port, if there is one, opens and closes with the public one and has no drain of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Generator, Iterable
from functools import partial
from types import FrameType
from typing import Any, Final

import uvicorn
from fastapi import FastAPI

from service.http.connection.protocol import BoundedHttpProtocol
from service.settings import Settings
from service.system.signals import SignalHandlers

log = logging.getLogger(__name__)


def urls_of(servers: Iterable[asyncio.Server], scheme: str = "http") -> list[str]:
    return [_url_of(one.getsockname(), scheme) for server in servers for one in server.sockets]


def _url_of(address: Any, scheme: str) -> str:
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


# libuv accepts one connection for each listening socket in a turn of the event loop. In a flood a turn takes
# up to 0.1 s, and new clients would wait for seconds behind the flood's own connections.
_LISTENERS: Final = 32


class DrainingServer(uvicorn.Server):
    """uvicorn's server with a drain phase before it stops accepting.

    `admin` serves another port on the same event loop, and must leave the signals to this one.
    """

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        signals: SignalHandlers,
        admin: uvicorn.Server | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                # uvicorn calls this like the class; it has no setting for the extra argument.
                http=partial(  # type: ignore[arg-type]
                    BoundedHttpProtocol,
                    header_timeout_s=settings.receive_timeout_s,
                    on_refused=app.state.service.count_refused_head,
                    shed=app.state.shed,
                ),
                ws="none",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                ssl_context_factory=(lambda *_: tls) if tls else None,
                proxy_headers=False,  # the application has its own, `forwarded`
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=settings.grace_s,
            )
        )
        self._service = app.state.service
        self._drain_s = settings.drain_s
        self._signals = signals
        self._stop_signals = 0
        self._admin = admin
        self._admin_task: asyncio.Task[None] | None = None
        self._copies: list[socket.socket] = []  # of the listening socket

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._copies = [one.dup() for one in sockets or () for _ in range(_LISTENERS - 1)]
        await super().startup([*(sockets or ()), *self._copies] or None)
        for url in urls_of(self.servers[:1], "https" if self.config.is_ssl else "http"):
            log.info("serving", extra={"url": url})
        if self._admin is not None:
            self._admin_task = asyncio.create_task(self._admin.serve(), name="admin port")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # The admin port stops first: what it changes needs the application.
        if self._admin is not None and self._admin_task is not None:
            self._admin.should_exit = True
            try:
                await self._admin_task
            except Exception:
                log.exception("the admin port failed")
        await super().shutdown([*(sockets or ()), *self._copies])

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # In place of uvicorn's handlers. Ours run on the signal thread, so they go through the loop.
        on_loop = asyncio.get_running_loop().call_soon_threadsafe
        with self._signals.handled(
            lambda number: on_loop(self.handle_exit, number, None),
            lambda: on_loop(self.handle_hangup),
        ):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._stop_signals += 1
        log.info("stopping", extra={"signal": signal.Signals(sig).name, "drain_s": self._drain_s})
        self._service.begin_drain()

        if self._stop_signals > 1:
            self.should_exit = self.force_exit = True
            if self._admin is not None:
                self._admin.force_exit = True
        elif sig == signal.SIGINT or not self._drain_s:
            self.should_exit = True
        else:
            asyncio.get_running_loop().call_later(self._drain_s, self._end_drain)

    def handle_hangup(self) -> None:
        if not self._service.draining:
            log.info("polling the model repository", extra={"signal": "SIGHUP"})
            self._service.poll_repository()

    def _end_drain(self) -> None:
        self.should_exit = True

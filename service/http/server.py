"""Runs an application in uvicorn and stops it in stages, so that nothing accepted is lost.

SIGTERM: /readyz says no while connections are still accepted, for the drain time, in which load
balancers look away; then the listening socket closes, requests in flight finish within the grace
period, and the process exits with 0. SIGINT skips the drain time; a second signal ends at once.
SIGHUP: the model repository is looked at now, not at the next interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Generator
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.http.protocol import BoundedHttpProtocol
from service.settings import Settings
from service.system.signals import SignalHandlers

log = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """uvicorn's server with a drain phase before it stops accepting."""

    def __init__(self, app: FastAPI, settings: Settings, signals: SignalHandlers) -> None:
        """Configures uvicorn for the application; `run` blocks until it has stopped."""
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                # A callable in place of the class, to pass what uvicorn has no setting for.
                http=partial(  # type: ignore[arg-type]
                    BoundedHttpProtocol, header_timeout_s=settings.receive_timeout_s
                ),
                ws="none",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=settings.grace_s,
            )
        )
        self._service = app.state.service
        self._drain_s = settings.drain_s
        self._signals = signals
        self._stops = 0

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Starts listening and says where."""
        await super().startup(sockets)  # type: ignore[arg-type]
        for server in self.servers:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                address = f"[{host}]" if ":" in host else host
                log.info("serving", extra={"url": f"http://{address}:{port}"})

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handles the process's signals on the event loop, in place of uvicorn's own handlers."""
        on_loop = asyncio.get_running_loop().call_soon_threadsafe
        with self._signals.handled(
            lambda number: on_loop(self.handle_exit, number, None),
            lambda: on_loop(self.handle_hangup),
        ):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Begins to stop; a second signal ends at once."""
        self._stops += 1
        log.info("stopping", extra={"signal": signal.Signals(sig).name, "drain_s": self._drain_s})
        self._service.begin_drain()
        if self._stops > 1:
            self.should_exit = self.force_exit = True
        elif sig == signal.SIGINT or not self._drain_s:
            self.should_exit = True
        else:
            asyncio.get_running_loop().call_later(self._drain_s, self._end_drain)

    def handle_hangup(self) -> None:
        """Looks at the model repository; what is stopping adopts nothing any more."""
        if not self._service.draining:
            log.info("looking at the repository", extra={"signal": "SIGHUP"})
            self._service.poll_repository()

    def _end_drain(self) -> None:
        self.should_exit = True

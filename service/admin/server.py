"""The server of the admin port, on the event loop of the public one."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final

import uvicorn

from service.admin.actions import AdminPort
from service.admin.app import create_admin_app
from service.http.connection.protocol import BoundedHttpProtocol
from service.http.problems import PROBLEMS
from service.http.server import urls_of

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 100
_HEADER_TIMEOUT_S: Final = 10.0
_KEEP_ALIVE_S: Final = 10
_GRACE_S: Final = 2


class AdminServer(uvicorn.Server):
    """Serves the admin port until `should_exit` is set; it leaves the signals to `DrainingServer`.

    Args:
        port: what the application needs.
        listener: the socket, which listens already.
    """

    def __init__(self, port: AdminPort, listener: socket.socket) -> None:
        bounded = partial(
            BoundedHttpProtocol,
            header_timeout_s=_HEADER_TIMEOUT_S,
            on_refused=lambda code: port.metrics.count_admin_request(PROBLEMS[code].status),
        )
        super().__init__(
            uvicorn.Config(
                create_admin_app(port),
                http=partial(_limit_connections, bounded),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                # The log of changes names the peer itself, not whom it claims to forward.
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_GRACE_S,
                backlog=MAX_CONNECTIONS,
            )
        )
        self._listener = listener

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await super().serve(sockets or [self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for url in urls_of(self.servers):
            log.info("serving the admin port", extra={"url": url})
        if not _is_loopback(self._listener.getsockname()[0]):
            log.warning("other machines can reach the admin port, which has no TLS")

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def _limit_connections(
    protocol: Callable[..., asyncio.Protocol], *, server_state: Any, **others: Any
) -> asyncio.Protocol:
    if len(server_state.connections) >= MAX_CONNECTIONS:
        return _Disconnect()
    return protocol(server_state=server_state, **others)


class _Disconnect(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()

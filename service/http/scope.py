"""What convserve stores in a request's ASGI scope.

The protocol stores the peer, the edge middleware stores the rest. Another server stores no peer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from typing import Any, Final

_PEER: Final = "convserve.peer"
_REQUEST_ID: Final = "convserve.request_id"
_STARTED_S: Final = "convserve.started_s"

UNMATCHED: Final = "unmatched"  # the route of a request that no route matched


class Peer:
    """The client's end of the connection, for one request.

    Attributes:
        body_complete: all of the request has arrived.
        disconnected: the client cannot receive a response any more.
        on_disconnect: called once when that happens.
    """

    __slots__ = ("body_complete", "disconnected", "on_disconnect")

    def __init__(self) -> None:
        self.body_complete = False
        self.disconnected = False
        self.on_disconnect: Callable[[], object] | None = None

    def disconnect(self) -> None:
        self.disconnected = True
        if self.on_disconnect is not None:
            self.on_disconnect()


# The scopes are `Any` because uvicorn's is a TypedDict and Starlette's a mutable mapping.


def add_peer(scope: Any) -> Peer:
    peer = scope[_PEER] = Peer()
    return peer


def peer_of(scope: Any) -> Peer | None:
    peer: Peer | None = scope.get(_PEER)
    return peer


def client_of(scope: Any) -> str:
    """Returns whom a request counts for, where clients share something: the client's address.

    Of an IPv6 address, the network of 64 bits, because a single machine has as many addresses.
    """
    address = (scope.get("client") or ("-",))[0]
    return _network_of(address) if ":" in address else address


@lru_cache(maxsize=4096)
def _network_of(address: str) -> str:
    try:
        found = IPv6Address(address)
    except AddressValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return f"{IPv6Address(int(found) >> 64 << 64)}/64"


def set_request_info(scope: Any, request_id: str, started_s: float) -> None:
    scope[_REQUEST_ID] = request_id
    scope[_STARTED_S] = started_s  # monotonic


def request_id_of(scope: Any) -> str:
    request_id: str = scope[_REQUEST_ID]
    return request_id


def started_s_of(scope: Any) -> float | None:
    started_s: float | None = scope.get(_STARTED_S)
    return started_s


def route_of(scope: Any) -> str:
    # The template, not the path: otherwise clients could create any number of metric series.
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else UNMATCHED

"""What the service keeps in the ASGI scope of a request.

The protocol puts the peer there, the edge the rest; under another server there is no peer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

_PEER: Final = "convserve.peer"
_REQUEST_ID: Final = "convserve.request_id"
_STARTED_S: Final = "convserve.started_s"

UNMATCHED: Final = "unmatched"


class Peer:
    """The other end of a connection, for the time of one request.

    Attributes:
        gone: it will not receive an answer any more.
        on_gone: called once when that happens.
    """

    __slots__ = ("gone", "on_gone")

    def __init__(self) -> None:
        self.gone = False
        self.on_gone: Callable[[], object] | None = None

    def leave(self) -> None:
        self.gone = True
        if self.on_gone is not None:
            self.on_gone()


# `Any`, because uvicorn's scope is a TypedDict and Starlette's a mutable mapping.


def add_peer(scope: Any) -> Peer:
    """Puts a new peer there."""
    peer = scope[_PEER] = Peer()
    return peer


def peer_of(scope: Any) -> Peer | None:
    peer: Peer | None = scope.get(_PEER)
    return peer


def begin(scope: Any, request_id: str, started_s: float) -> None:
    """Notes the request's id and when its head was complete, in monotonic seconds."""
    scope[_REQUEST_ID] = request_id
    scope[_STARTED_S] = started_s


def request_id_of(scope: Any) -> str:
    request_id: str = scope[_REQUEST_ID]
    return request_id


def started_s_of(scope: Any) -> float | None:
    """Returns when the request's head was complete, None if the edge did not see it."""
    started_s: float | None = scope.get(_STARTED_S)
    return started_s


def route_of(scope: Any) -> str:
    """Returns the path template that matched, so that clients cannot create metric series."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else UNMATCHED

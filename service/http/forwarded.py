"""The client's address behind trusted proxies, from X-Forwarded-For and X-Forwarded-Proto."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final

UNIX: Final = "unix"  # in place of an address: whoever connects to the unix socket

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_MAX_HOPS: Final = 32
_WITH_PORT: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?")


class TrustedProxies:
    """Believes the forwarding headers of some peers, and of nobody else.

    Args:
        allowed: addresses, networks and `unix`, separated by commas; the setting has checked it.
    """

    def __init__(self, allowed: str) -> None:
        entries = [one.strip() for one in allowed.split(",") if one.strip()]
        self._unix = UNIX in entries
        self._networks = [ipaddress.ip_network(one) for one in entries if one != UNIX]

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def apply(self, scope: Any) -> None:
        """Replaces `client` and `scheme` of the scope, if its peer is trusted and names others.

        Each proxy appends the peer that it saw, so the list is read from its end. The client is the
        first address that is not trusted. What stands before it may be forged. Reading also stops
        at anything that is not an address.
        """
        client = scope.get("client")
        peer = _address(client[0]) if client else None
        if not (self._trusts(peer) if client else self._unix):
            return

        for name, value in scope["headers"]:
            if name == b"x-forwarded-proto" and value in (b"http", b"https"):
                scope["scheme"] = value.decode()
        for entry in _from_the_end(scope["headers"]):
            found = _address_and_port(entry)
            if found is None:
                return
            address, port = found
            scope["client"] = (str(address), port)
            if not self._trusts(address):
                return

    def _trusts(self, address: _Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _from_the_end(headers: list[tuple[bytes, bytes]]) -> list[str]:
    values = [value for name, value in headers if name == b"x-forwarded-for"]
    entries = b",".join(values).decode("latin-1").rsplit(",", _MAX_HOPS)
    entries = entries[1:] if len(entries) > _MAX_HOPS else entries  # the first is the unsplit rest
    return [entry.strip() for entry in reversed(entries) if entry.strip()]


def _address_and_port(entry: str) -> tuple[_Address, int] | None:
    if (address := _address(entry)) is not None:
        return address, 0
    found = _WITH_PORT.fullmatch(entry)
    address = _address(found[1] or found[2]) if found else None
    port = int(found[3] or 0) if found else 0
    return None if address is None or port > 65535 else (address, port)


def _address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    # A zone has any characters, and means something on the proxy's machine only.
    return None if address.scope_id else address.ipv4_mapped or address

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.forwarded import TrustedProxies

TRUSTED = "127.0.0.1, 10.0.0.0/8,fd00::/8"


def client_of(
    *forwarded: str, peer: str | None = "127.0.0.1", trusted: str = TRUSTED
) -> tuple[str, int] | None:
    """The client after these X-Forwarded-For fields from the peer, None for a unix socket."""
    scope: dict[str, Any] = {
        "client": (peer, 1234) if peer else None,
        "headers": [(b"x-forwarded-for", one.encode("latin-1")) for one in forwarded],
    }
    TrustedProxies(trusted).apply(scope)
    client: tuple[str, int] | None = scope["client"]
    return client


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.7", ("203.0.113.7", 0)),
        ("203.0.113.7:55", ("203.0.113.7", 55)),
        (" 203.0.113.7 ,", ("203.0.113.7", 0)),
        ("2001:DB8::7", ("2001:db8::7", 0)),
        ("[2001:db8::7]", ("2001:db8::7", 0)),
        ("[2001:db8::7]:65535", ("2001:db8::7", 65535)),
        ("::ffff:203.0.113.7", ("203.0.113.7", 0)),
        ("1.1.1.1, 203.0.113.7, 10.2.3.4", ("203.0.113.7", 0)),
        ("203.0.113.7, ::ffff:10.2.3.4, fd00::1", ("203.0.113.7", 0)),
        ("10.0.0.1, 10.0.0.2", ("10.0.0.1", 0)),
    ],
)
def test_forwarded_client_is_the_last_address_that_is_not_trusted(forwarded, client):
    assert client_of(forwarded) == client


@pytest.mark.parametrize(
    "garbage",
    [
        "unknown",
        "_hidden",
        "localhost",
        "' OR 1=1",
        "1.2.3",
        "1.2.3.4:",
        "1.2.3.4:99999",
        "01.2.3.4",
        "[::1",
        "fe80::1%\x1b[31m",
        "1.2.3.4 5.6.7.8",
        "\xff",
    ],
)
def test_forwarded_reading_stops_at_garbage(garbage):
    assert client_of(garbage) == ("127.0.0.1", 1234)
    assert client_of(f"203.0.113.7, {garbage}, 10.0.0.9") == ("10.0.0.9", 0)
    assert client_of(f"{garbage}, 203.0.113.7") == ("203.0.113.7", 0)


def test_forwarded_several_fields_are_one_list():
    assert client_of("1.1.1.1", "203.0.113.7", "10.0.0.1") == ("203.0.113.7", 0)


@pytest.mark.parametrize("peer", ["203.0.113.9", "127.0.0.2", "::1", None])
def test_forwarded_header_of_any_other_peer_is_ignored(peer):
    assert client_of("1.1.1.1", peer=peer) == ((peer, 1234) if peer else None)


@pytest.mark.parametrize("trusted", ["", "unix"])
def test_forwarded_by_default_nobody_is_believed(trusted):
    assert bool(TrustedProxies(trusted)) == (trusted == "unix")
    assert client_of("1.1.1.1", trusted=trusted) == ("127.0.0.1", 1234)


def test_forwarded_unix_socket_can_be_trusted():
    assert client_of("1.1.1.1", peer=None, trusted="unix") == ("1.1.1.1", 0)


def test_forwarded_peer_that_is_ipv4_in_ipv6_is_trusted():
    assert client_of("1.1.1.1", peer="::ffff:127.0.0.1") == ("1.1.1.1", 0)


def test_forwarded_endless_list_is_read_to_its_bound():
    assert client_of("1.1.1.1" + ",10.0.0.1" * 3000) == ("10.0.0.1", 0)
    assert client_of("," * 30_000 + "1.1.1.1") == ("1.1.1.1", 0)


@pytest.mark.parametrize(
    ("proto", "peer", "scheme"),
    [
        (b"https", "127.0.0.1", "https"),
        (b"https", "203.0.113.9", "http"),
        (b"gopher", "127.0.0.1", "http"),
    ],
)
def test_forwarded_scheme_is_http_or_https(proto, peer, scheme):
    scope: dict[str, Any] = {
        "client": (peer, 1),
        "scheme": "http",
        "headers": [(b"x-forwarded-proto", proto)],
    }
    TrustedProxies(TRUSTED).apply(scope)

    assert scope["scheme"] == scheme


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_forwarded_client_is_always_an_address(forwarded):
    client = client_of(forwarded)

    assert client is not None
    assert client_of(client[0], trusted="127.0.0.1") in ((client[0], 0), ("127.0.0.1", 1234))

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from service.http.scope import (
    UNMATCHED,
    add_peer,
    client_of,
    peer_of,
    request_id_of,
    route_of,
    set_request_info,
    started_s_of,
)


def test_scope_returns_what_was_stored():
    scope: dict[str, Any] = {}

    peer = add_peer(scope)
    set_request_info(scope, "id", 1.5)

    assert peer_of(scope) is peer
    assert (request_id_of(scope), started_s_of(scope)) == ("id", 1.5)


def test_scope_of_another_server_has_no_peer_and_no_start_time():
    assert (peer_of({}), started_s_of({})) == (None, None)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({}, UNMATCHED),
        ({"route": None}, UNMATCHED),
        ({"route": SimpleNamespace(path="/v1/models/{name}")}, "/v1/models/{name}"),
    ],
    ids=["none", "no_route", "template"],
)
def test_scope_route_is_the_template_that_matched(scope, expected):
    assert route_of(scope) == expected


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("10.0.0.1", 5), "10.0.0.1"),
        (None, "-"),
        (("2001:db8:1:2:3:4:5:6", 5), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::9", 5), "2001:db8:1:2::/64"),
        (("::ffff:10.0.0.1", 5), "10.0.0.1"),
        (("a:b", 5), "a:b"),
    ],
)
def test_scope_client_is_an_address_or_a_network_of_ipv6(client, expected):
    assert client_of({"client": client}) == expected

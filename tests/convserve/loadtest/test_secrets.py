from __future__ import annotations

import pytest

from convserve.loadtest.secrets import hide_in_header, hide_in_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host/v1?top_k=1", "http://host/v1?top_k=1"),
        ("http://host/v1?api_key=abc&top_k=1", "http://host/v1?api_key=...&top_k=1"),
        ("/v1?top_k=1&access_token=a%20b", "/v1?top_k=1&access_token=..."),
        ("https://host/?X-Amz-Signature=1f2e#top", "https://host/?X-Amz-Signature=...#top"),
    ],
    ids=["none", "first", "last", "signed"],
)
def test_hide_in_url_leaves_only_harmless_values(url, shown):
    assert hide_in_url(url) == shown


@pytest.mark.parametrize(
    ("header", "shown"),
    [
        ("Accept: text/plain", "Accept: text/plain"),
        ("Authorization: Bearer abc", "Authorization: ..."),
        ("X-Password: hunter2", "X-Password: ..."),
        ("Cookie: session=1", "Cookie: ..."),
    ],
)
def test_hide_in_header_leaves_only_harmless_values(header, shown):
    assert hide_in_header(header) == shown

from __future__ import annotations

import logging

import pytest
from pydantic import SecretStr

from service.admin.token import AdminToken, AdminTokenUnusable, read_admin_token
from service.settings import Settings
from tests.problems import MARKER

TOKEN = f"{MARKER}-admin-token"


def token_file(tmp_path, text: str = TOKEN):
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_token_given_directly_matches_only_itself():
    token = AdminToken(SecretStr(TOKEN), None)

    presented = (TOKEN, TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "")
    assert [token.matches(one.encode()) for one in presented] == [True, *[False] * 4]


def test_token_in_a_file_matches_without_its_line_end(tmp_path):
    token = AdminToken(None, token_file(tmp_path, TOKEN + "\r\n"))

    assert token.matches(TOKEN.encode())


def test_token_written_anew_counts_at_once(tmp_path):
    path = token_file(tmp_path)
    token = AdminToken(None, path)

    path.write_text("another-admin-token")

    assert token.matches(b"another-admin-token")
    assert not token.matches(TOKEN.encode())


@pytest.mark.parametrize("text", [None, "", "short"], ids=["deleted", "empty", "short"])
def test_token_file_that_becomes_unusable_lets_no_one_in(tmp_path, caplog, text):
    path = token_file(tmp_path)
    token = AdminToken(None, path)
    path.unlink() if text is None else path.write_text(text)

    assert not token.matches((text or TOKEN).encode())
    (line,) = caplog.records
    assert str(path) in line.reason


@pytest.mark.parametrize(
    "text",
    ["", "fifteen-letters", "with a space in the middle", "ümlaut-is-not-ascii", "x" * 5_000],
    ids=["empty", "short", "space", "not_ascii", "long"],
)
def test_token_that_is_no_good_refused_without_being_shown(tmp_path, text):
    for fixed, file in ((SecretStr(text), None), (None, token_file(tmp_path, text))):
        with pytest.raises(AdminTokenUnusable) as refused:
            AdminToken(fixed, file)

        assert not text or text not in str(refused.value)


def test_token_file_that_is_missing_refused_by_name(tmp_path):
    with pytest.raises(AdminTokenUnusable, match="nowhere, cannot be read: No such file"):
        AdminToken(None, tmp_path / "nowhere")


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, True), (0o604, True)])
def test_token_file_that_others_can_read_warned_about(tmp_path, caplog, mode, warned):
    path = token_file(tmp_path)
    path.chmod(mode)

    with caplog.at_level(logging.WARNING):
        AdminToken(None, path)

    assert [line.file for line in caplog.records] == [str(path)] * warned
    assert TOKEN not in caplog.text


def test_token_of_no_port_is_not_needed():
    assert read_admin_token(Settings()) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs a token"),
        ({"admin_token": TOKEN, "admin_token_file": "token"}, "both set"),
    ],
    ids=["neither", "both"],
)
def test_token_of_a_port_must_be_given_once(settings, message):
    with pytest.raises(AdminTokenUnusable, match=message):
        read_admin_token(Settings(admin_port=1, **settings))

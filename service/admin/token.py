"""The token of the admin port."""

from __future__ import annotations

import hashlib
import hmac
import logging
import stat
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from service.settings import Settings

log = logging.getLogger(__name__)

MIN_CHARACTERS: Final = 16
_MAX_BYTES: Final = 4_096


class AdminTokenUnusable(Exception):
    """There is no usable token; the message says what to do."""


class AdminToken:
    """A token from a file, or a fixed one.

    The file is read for every comparison, so a new token counts at once. Without a readable file
    nothing matches: deleting it revokes the token.
    """

    def __init__(self, fixed: SecretStr | None, file: Path | None) -> None:
        """Checks the token.

        Raises:
            AdminTokenUnusable: neither or both are given, or the token cannot be used.
        """
        if fixed is None and file is None:
            raise AdminTokenUnusable(
                "the admin port needs a token: write one to a file and set "
                "CONVSERVE_ADMIN_TOKEN_FILE, or set CONVSERVE_ADMIN_TOKEN"
            )
        if fixed is not None and file is not None:
            raise AdminTokenUnusable(
                "CONVSERVE_ADMIN_TOKEN and CONVSERVE_ADMIN_TOKEN_FILE are both set: set only one"
            )
        self._fixed = fixed
        self._file = file
        self._expected()
        if file is not None and file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            log.warning(
                "other users can read the file with the admin token", extra={"file": str(file)}
            )

    def matches(self, presented: bytes) -> bool:
        """Compares in constant time; reads the file, so call it off the event loop."""
        try:
            expected = self._expected()
        except AdminTokenUnusable as error:
            log.warning("no token for the admin port", extra={"reason": str(error)})
            return False

        # Digests have one length, so the time tells nothing about the length of the token.
        digests = [hashlib.sha256(one).digest() for one in (presented, expected)]
        return hmac.compare_digest(*digests)

    def _expected(self) -> bytes:
        if self._file is None:
            fixed = self._fixed.get_secret_value() if self._fixed else ""
            return _checked(fixed.encode(errors="surrogateescape"), "CONVSERVE_ADMIN_TOKEN")
        try:
            with self._file.open("rb") as file:
                text = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise AdminTokenUnusable(
                f"the file with the admin token, {self._file}, cannot be read: {error.strerror}"
            ) from error
        return _checked(text.strip(), f"the admin token in {self._file}")


def read_admin_token(settings: Settings) -> AdminToken | None:
    """Returns the token of the admin port, None if there is no such port.

    Raises:
        AdminTokenUnusable: there is the port, but no usable token.
    """
    if settings.admin_port is None:
        return None
    return AdminToken(settings.admin_token, settings.admin_token_file)


def _checked(token: bytes, name: str) -> bytes:
    if len(token) < MIN_CHARACTERS:
        raise AdminTokenUnusable(
            f"{name} has {len(token)} characters; at least {MIN_CHARACTERS} are needed. "
            "To make one: openssl rand -hex 32"
        )
    if len(token) > _MAX_BYTES or not all(0x21 <= byte <= 0x7E for byte in token):
        raise AdminTokenUnusable(
            f"{name} must be at most {_MAX_BYTES:,} printable ASCII characters without spaces"
        )
    return token

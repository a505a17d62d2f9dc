"""Keeps passwords and keys out of results, which people hand on."""

from __future__ import annotations

import re
from typing import Final

_NAME: Final = re.compile("auth|cookie|cred|key|pass|secret|sig|token", re.IGNORECASE)
_PARAMETER: Final = re.compile(r"(?<=[?&])([^=&#\s]+)=([^&#\s']*)")
_HIDDEN: Final = "..."


def hide_in_url(url: str) -> str:
    """Returns a URL or its path without the values of parameters that look like secrets."""

    def hide(parameter: re.Match[str]) -> str:
        name = parameter[1]
        return f"{name}={_HIDDEN}" if _NAME.search(name) else parameter[0]

    return _PARAMETER.sub(hide, url)


def hide_in_header(header: str) -> str:
    """Returns `Name: value` without the value if the name looks like that of a secret."""
    name, colon, value = header.partition(":")
    return f"{name}: {_HIDDEN}" if _NAME.search(name) else f"{name}{colon}{value}"

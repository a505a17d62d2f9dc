"""Arguments of the command line: their types, and the command line as a result keeps it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final
from urllib.parse import urlsplit

import click

from convserve.loadtest.secrets import hide_in_header, hide_in_url
from convserve.loadtest.sending.plan import Target

_LONGEST_S: Final = 7 * 86400.0
_UNITS_S: Final = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType[float]):
    """Seconds, written as 90, 500ms, 90s, 5m or 1h."""

    name = "duration"

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)", str(value))
        seconds = float(found[1]) * _UNITS_S[found[2]] if found else -1.0
        if not self._least_s <= seconds <= _LONGEST_S:
            least = f", {self._least_s:g} s at least" if self._least_s else ""
            self.fail(
                f"{value!r} is no duration; write 90, 500ms, 90s, 5m or 1h{least}", param, ctx
            )
        return seconds


class Share(click.ParamType[float]):
    """A share of the requests, written in percent."""

    name = "percent"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%?", str(value))
        if found is None or float(found[1]) >= 100:
            self.fail(f"{value!r} is no percentage below 100; write 1% or 0.5%", param, ctx)
        return float(found[1]) / 100


class Header(click.ParamType[tuple[str, str]]):
    """A header's name and value."""

    name = "header"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        name, colon, text = str(value).partition(":")
        if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            self.fail(f"{value!r} is no header; write 'Name: value'", param, ctx)
        if "\r" in text or "\n" in text or not text.isascii():
            self.fail("a header's value must be one line of ASCII", param, ctx)
        return name, text.strip()


def parse_url(url: str, *, verify: bool) -> tuple[Target, str | None]:
    """Returns the target and the path, which is None if the URL has none."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise click.BadParameter(f"{url!r} is no address: {error}", param_hint="URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise click.BadParameter(
            f"{url!r} is no address of a server; write http://HOST:PORT", param_hint="URL"
        )

    tls = parts.scheme == "https"
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    target = Target(parts.hostname, port or (443 if tls else 80), tls=tls, verify=verify)
    return target, None if path in ("", "/") else path


def command_line(arguments: Sequence[str]) -> str:
    """Returns the command line without what it may hold of secrets."""
    shown = []
    for before, one in pairwise(["", *arguments]):
        option, equals, value = one.partition("=")
        if before == "--header":
            one = hide_in_header(one)
        elif option == "--header" and equals:
            one = f"{option}={hide_in_header(value)}"
        shown.append(hide_in_url(one))
    return shlex.join(["convserve", *shown])

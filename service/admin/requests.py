"""Reads requests to the admin port: who sent one, its options and its JSON body."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from service.errors import BodyTooLarge, InvalidParameter, MalformedRequest, RequestTimeout

MAX_BODY_BYTES: Final = 65_536
_MAX_USER_CHARACTERS: Final = 64
_MAX_VERSION_DIGITS: Final = 18  # as of a version's folder

Body = TypeVar("Body", bound=BaseModel)


def _parse_version(value: Any) -> Any:
    # The service sends versions as strings, so it takes them as strings too.
    if (
        isinstance(value, str)
        and value.isascii()
        and value.isdecimal()
        and len(value) <= _MAX_VERSION_DIGITS
    ):
        return int(value)
    return value


Version = Annotated[
    int, BeforeValidator(_parse_version), Field(ge=1, lt=10**_MAX_VERSION_DIGITS, strict=True)
]


class NoBody(BaseModel):
    """No body, or an empty object."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class VersionBody(NoBody):
    """{"version": 3}."""

    version: Version


class PartBody(NoBody):
    """{"version": 3}, or nothing for the whole model."""

    version: Version | None = None


class AliasBody(NoBody):
    """{"alias": "stable", "version": 3}; null instead of a version removes the alias."""

    alias: str
    version: Version | None


class DefaultBody(NoBody):
    """{"model": "cats"}."""

    model: str


class WaitOptions(NoBody):
    """Query parameters of every change."""

    wait: bool = True


def parse(model: type[Body], values: Any) -> Body:
    """Checks what a client sent.

    Raises:
        InvalidParameter: a key is unknown, missing or wrong. The message names it, but not its value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        keys = ", ".join(model.model_fields) or "none"
        if first["type"] == "extra_forbidden":
            raise InvalidParameter(f"unknown key; the keys are: {keys}") from error
        if not first["loc"]:
            raise InvalidParameter(f"must be a JSON object; its keys are: {keys}") from error
        raise InvalidParameter(f"{first['loc'][0]}: {first['msg']}") from error


async def read_json(request: Request, timeout_s: float) -> Any:
    """Reads a body of JSON; without a body, returns an empty object. The Content-Type does not matter.

    Raises:
        BodyTooLarge: it is larger than 64 kB; the rest is not read.
        RequestTimeout: it did not arrive in time.
        MalformedRequest: it is not JSON.
        ClientDisconnect: the client disconnected.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError as error:
        raise RequestTimeout(f"the body was still incomplete after {timeout_s:g} s") from error

    if not body:
        return {}
    try:
        return from_json(bytes(body), allow_inf_nan=False)
    except ValueError as error:
        raise MalformedRequest("the body is not valid JSON") from error


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"the body exceeds the limit of {MAX_BODY_BYTES:,} bytes")


def requested_by(request: Request) -> str:
    """Returns the client's address and, if it sent one, what X-Admin-User says.

    The header is a claim: whoever has the token can write anything there.
    """
    peer = request.client.host if request.client else "-"
    header = dict(request.scope["headers"]).get(b"x-admin-user", b"")
    text = header.decode(errors="backslashreplace").strip()[:_MAX_USER_CHARACTERS]
    user = "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )
    return f"{peer} ({user})" if user else peer

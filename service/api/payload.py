"""Reads a request body within its limits and finds the pictures in it.

A raw body is one picture, multipart carries files under any field name, JSON carries base64. The
Content-Type only selects the reader. A picture's own format is detected from its first bytes.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request

from service.api.multipart import parse_form
from service.api.routes import parse
from service.errors import (
    BodyTooLarge,
    InvalidParameter,
    MalformedRequest,
    MediaTypeRefused,
    RequestTimeout,
    ServiceError,
)
from service.http.scope import peer_of
from service.serving.admission import Slot

Image = bytes | ServiceError  # a picture's file, or why it could not be read

_MAX_OTHER_COMMAS: Final = 16  # in a JSON body, beside those between pictures
_FETCHED: Final = ("http://", "https://")
_NOT_FETCHED: Final = (
    'URLs are not fetched; download the picture and send its bytes, or as base64 in "image"'
)
_SIGNATURES: Final = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM")
_SURELY_WITH_ZEROS: Final = 1000  # bytes of a picture, zero bytes and line ends among them
_INLINE_JSON_BYTES: Final = 65_536  # above this, a thread costs less than a blocked event loop


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Limits on a request body's size and upload time."""

    max_bytes: int
    max_images: int
    timeout_s: float  # plus one second for each `min_rate_bytes_per_s` bytes received
    min_rate_bytes_per_s: int


class ClassifyOptions(BaseModel):
    """Options of a classify request: query parameters, form fields or JSON members."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: int | None = Field(
        None,
        ge=1,
        description="Largest number of predictions to return; more than there are classes means all. "
        "Default: 5, or all labels if each has a probability of its own (activation `sigmoid`).",
    )
    min_probability: float = Field(
        0.0, ge=0.0, le=1.0, description="Leave out predictions below this probability."
    )


@dataclass(slots=True)
class Upload:
    """The pictures and options found in a body."""

    images: list[Image]
    options: dict[str, Any] = field(default_factory=dict)
    as_list: bool = False  # the client sent a list, so it gets one, even for a single picture


async def read_body(request: Request, slot: Slot, limits: BodyLimits) -> bytes:
    """Reads the body and counts its bytes, so that no more than the limit is ever in memory.

    Raises:
        BodyTooLarge: Content-Length or the bytes received exceed the limit; the rest is not read.
        RequestTimeout: the body did not arrive in time.
        Overloaded: too many bytes of all requests are in flight.
        MalformedRequest: the body is shorter than its Content-Length.
        ClientDisconnect: the client disconnected.
    """
    declared = request.headers.get("content-length", "")
    expected = int(declared) if declared.isascii() and declared.isdecimal() else None
    too_large = (
        f"the body exceeds the limit of {limits.max_bytes:,} bytes; send a smaller picture, or raise "
        "CONVSERVE_MAX_BODY_BYTES on the server"
    )
    if expected is not None and expected > limits.max_bytes:
        raise BodyTooLarge(too_large)

    body: bytes | bytearray = bytearray()
    clock = asyncio.get_running_loop().time
    started_s = clock()
    try:
        # A body that is here already needs no timer.
        peer = peer_of(request.scope)
        complete = peer is not None and peer.body_complete
        async with asyncio.timeout(None if complete else limits.timeout_s) as timeout:
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect

                chunk, more = message.get("body", b""), message.get("more_body", False)
                if len(body) + len(chunk) > limits.max_bytes:
                    raise BodyTooLarge(too_large)
                slot.add_bytes(len(chunk))
                if body or more:
                    body += chunk
                else:
                    body = chunk  # the whole body in one chunk needs no copy
                if not more:
                    break

                allowed_s = limits.timeout_s + len(body) / limits.min_rate_bytes_per_s
                # Bytes received extend the timeout, but not for a client that has gone silent: its
                # upload would block memory that others need.
                silent_until_s = clock() + limits.timeout_s
                timeout.reschedule(min(started_s + allowed_s, silent_until_s))
    except TimeoutError as error:
        raise RequestTimeout(
            f"the body was still incomplete after {clock() - started_s:.0f} s"
        ) from error

    if expected is not None and len(body) != expected:
        raise MalformedRequest(f"Content-Length is {expected}, but the body has {len(body)} bytes")
    return bytes(body)


async def parse_body(body: bytes, content_type: str, limits: BodyLimits) -> Upload:
    """Finds the pictures in a body.

    Args:
        body: the whole body.
        content_type: the header as sent, empty without one.
        limits: only `max_images` is checked here.

    Raises:
        MediaTypeRefused: no reader for the Content-Type.
        MalformedRequest, InvalidParameter: the body is not what its Content-Type says.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    upload = await _reader_for(media_type)(body, content_type, limits)
    if not upload.images:
        raise InvalidParameter("the request has no picture")
    _check_count(len(upload.images), limits)
    return upload


def _check_count(n_images: int, limits: BodyLimits) -> None:
    if n_images > limits.max_images:
        raise InvalidParameter(
            f"{n_images:,} pictures in one request, the limit is {limits.max_images}"
        )


def check_headers(request: Request) -> None:
    """Checks the body's type before the body is read.

    Raises:
        MediaTypeRefused: an unknown media type, or a compressed body.
    """
    if encodings := request.headers.getlist("content-encoding"):
        names = {name.strip().lower() for name in ",".join(encodings).split(",")}
        if names - {"", "identity"}:
            raise MediaTypeRefused(
                "compressed request bodies are not supported; send the body uncompressed"
            )
    _reader_for(request.headers.get("content-type", "").partition(";")[0].strip().lower())


@lru_cache(maxsize=128)  # most clients send the same query every time
def query_options(query: bytes) -> ClassifyOptions:
    return parse(ClassifyOptions, QueryParams(query))


def merge_options(query: ClassifyOptions, in_body: dict[str, Any]) -> ClassifyOptions:
    # Options in the body override those in the query.
    if not in_body:
        return query
    return parse(ClassifyOptions, {**query.model_dump(exclude_unset=True), **in_body})


async def _read_raw(body: bytes, _content_type: str, _limits: BodyLimits) -> Upload:
    return Upload([body])


async def _read_urlencoded(body: bytes, _content_type: str, _limits: BodyLimits) -> Upload:
    # What `curl -d @FILE` leaves of a picture. It sends the same type as --data-binary.
    picture = len(body) > _SURELY_WITH_ZEROS and body.startswith(_SIGNATURES)
    if picture and not any(one in body for one in (b"\0", b"\n", b"\r")):
        raise MalformedRequest(
            "zero bytes and line ends were taken out of the picture, as curl -d does; use "
            "curl --data-binary @FILE"
        )
    return Upload([body])


async def _read_multipart(body: bytes, content_type: str, limits: BodyLimits) -> Upload:
    options: dict[str, Any] = {}
    images: list[Image] = []
    max_parts = limits.max_images + len(ClassifyOptions.model_fields)
    for name, content, is_file in await parse_form(body, content_type, max_parts):
        if name in ClassifyOptions.model_fields and not is_file:
            options[name] = content.decode("utf-8", "replace")
        else:
            images.append(content)
    return Upload(images, options, as_list=len(images) > 1)


async def _read_json(body: bytes, _content_type: str, limits: BodyLimits) -> Upload:
    if len(body) < _INLINE_JSON_BYTES:
        return _parse_json(body, limits)
    return await asyncio.to_thread(_parse_json, body, limits)


def _parse_json(body: bytes, limits: BodyLimits) -> Upload:
    # Base64 has no commas, so this many of them cannot all separate pictures. Millions of small items
    # would take a hundred times the body's size in memory.
    if body.count(b",") > 2 * limits.max_images + _MAX_OTHER_COMMAS:
        raise InvalidParameter(
            f"the JSON has too many items, the limit is {limits.max_images} pictures"
        )
    try:
        document = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise MalformedRequest("the body is not valid JSON") from error

    if not isinstance(document, dict):
        raise InvalidParameter('the JSON must be an object such as {"image": "<base64>"}')
    options = {key: document.pop(key) for key in ClassifyOptions.model_fields if key in document}

    if document.keys() == {"image"}:
        image = _from_base64(document["image"])
        if isinstance(image, ServiceError):
            raise image
        return Upload([image], options)
    if document.keys() == {"images"} and isinstance(document["images"], list):
        _check_count(len(document["images"]), limits)
        return Upload([_from_base64(text) for text in document["images"]], options, as_list=True)

    if any(isinstance(one, str) and one.startswith(_FETCHED) for one in document.values()):
        raise InvalidParameter(_NOT_FETCHED)
    optional = ", ".join(ClassifyOptions.model_fields)
    raise InvalidParameter(
        f"the JSON must have either image or images (a list); optional members: {optional}"
    )


def _from_base64(text: object) -> Image:
    if not isinstance(text, str):
        return InvalidParameter("an image must be a base64 string")
    if text.startswith("data:"):  # a data URL, as browsers make them
        text = text.partition(",")[2]
    elif text.startswith(_FETCHED):
        return MalformedRequest(_NOT_FETCHED)
    if "\n" in text:  # MIME wraps base64 into lines
        text = "".join(text.split())
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return MalformedRequest("an image is not valid base64")


Reader = Callable[[bytes, str, BodyLimits], Awaitable[Upload]]

# One row for each way to send a picture.
READERS: Final[dict[str, Reader]] = {
    "multipart/form-data": _read_multipart,
    "application/json": _read_json,
    "": _read_raw,
    "application/octet-stream": _read_raw,
    "binary/octet-stream": _read_raw,
    # curl --data-binary sends this unless told otherwise.
    "application/x-www-form-urlencoded": _read_urlencoded,
    "image/*": _read_raw,
}


def _reader_for(media_type: str) -> Reader:
    key = "image/*" if media_type.startswith("image/") else media_type
    reader = READERS.get(key)
    if reader is None:
        supported = ", ".join(name for name in READERS if name)
        raise MediaTypeRefused(f"the Content-Type is not supported; supported: {supported}")
    return reader

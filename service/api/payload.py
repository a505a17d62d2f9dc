"""From an HTTP body to pictures: reads it under the limits and picks a reader by Content-Type.

The raw body is the picture; multipart carries one or many files under any field name; JSON carries
base64. The magic bytes decide what a picture is, the declared type only how the body is read.
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
from service.api.routes import read
from service.errors import (
    BodyTooLarge,
    InvalidParameter,
    MalformedRequest,
    MediaTypeRefused,
    RequestTimeout,
    ServiceError,
)
from service.serving.admission import Slot

Image = bytes | ServiceError

_MAX_OTHER_COMMAS: Final = 16
_INLINE_JSON_BYTES: Final = 65_536  # handing more to a thread costs less than parsing it


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How large a body may be and how long it may take.

    Attributes:
        max_bytes: of the whole body.
        max_images: pictures in one body.
        timeout_s: seconds a body may take, plus one for each `min_rate_bytes_per_s` bytes of it.
        min_rate_bytes_per_s: slowest upload in the long run.
    """

    max_bytes: int
    max_images: int
    timeout_s: float
    min_rate_bytes_per_s: int


class ClassifyOptions(BaseModel):
    """What a client may ask for beside the pictures, in the query, in form fields or in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: int | None = Field(
        None, ge=1, description="Predictions at most, 1 to the number of classes; 5 if not given."
    )
    min_probability: float = Field(
        0.0, ge=0.0, le=1.0, description="Leaves out predictions that are less probable."
    )


@dataclass(slots=True)
class Upload:
    """What a body held.

    Attributes:
        images: each picture's bytes, or the error that kept one from being read.
        options: the options given inside the body.
        many: the answer must be a list even for one picture, because a list was sent.
    """

    images: list[Image]
    options: dict[str, Any] = field(default_factory=dict)
    many: bool = False


async def read_body(request: Request, slot: Slot, limits: BodyLimits) -> bytes:
    """Reads the body while counting, so that no more than the limit is ever held.

    Raises:
        BodyTooLarge: declared or counted; the rest is not read.
        RequestTimeout: it did not arrive in time.
        Overloaded: the bytes in flight of all requests exceed their bound.
        MalformedRequest: it ended before its declared length.
    """
    declared = request.headers.get("content-length", "")
    expected = int(declared) if declared.isascii() and declared.isdecimal() else None
    too_large = f"the body exceeds the limit of {limits.max_bytes} bytes"
    if expected is not None and expected > limits.max_bytes:
        raise BodyTooLarge(too_large)

    body: bytes | bytearray = bytearray()
    clock = asyncio.get_running_loop().time
    started_s = clock()
    try:
        async with asyncio.timeout(limits.timeout_s) as timeout:
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
                    body = chunk  # all of it came at once and need not be copied
                if not more:
                    break

                allowed_s = limits.timeout_s + len(body) / limits.min_rate_bytes_per_s
                # A fast start earns time, but not for silence: that would hold the bytes in flight.
                silent_until_s = clock() + limits.timeout_s
                timeout.reschedule(min(started_s + allowed_s, silent_until_s))
    except TimeoutError as error:
        raise RequestTimeout(
            f"the body was incomplete after {clock() - started_s:.0f} s"
        ) from error
    if expected is not None and len(body) != expected:
        raise MalformedRequest("the body is shorter than its declared length")
    return bytes(body)


async def parse_body(body: bytes, content_type: str, limits: BodyLimits) -> Upload:
    """Finds the pictures in a body.

    Args:
        body: the whole body.
        content_type: the header as sent, empty if none was.
        limits: for the number of pictures.

    Raises:
        MediaTypeRefused: the declared type is neither an image nor a way to send one.
        MalformedRequest, InvalidParameter: the body is not what its type says.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    upload = await _reader_for(media_type)(body, content_type, limits)
    if not upload.images:
        raise InvalidParameter("the request holds no picture")
    _check_count(len(upload.images), limits)
    return upload


def _check_count(n_images: int, limits: BodyLimits) -> None:
    if n_images > limits.max_images:
        raise InvalidParameter(
            f"{n_images} pictures in one request, the limit is {limits.max_images}"
        )


def check_headers(request: Request) -> None:
    """Refuses what cannot be read before any of the body is.

    Raises:
        MediaTypeRefused: an unknown media type, or a compressed body.
    """
    if encodings := request.headers.getlist("content-encoding"):
        names = {name.strip().lower() for name in ",".join(encodings).split(",")}
        if names - {"", "identity"}:
            raise MediaTypeRefused("compressed request bodies are not accepted")
    _reader_for(request.headers.get("content-type", "").partition(";")[0].strip().lower())


@lru_cache(maxsize=128)
def query_options(query: bytes) -> ClassifyOptions:
    """Returns the options of a query string.

    Raises:
        InvalidParameter: one is unknown or out of its range.
    """
    return read(ClassifyOptions, QueryParams(query))


def merge_options(query: ClassifyOptions, in_body: dict[str, Any]) -> ClassifyOptions:
    """Returns the options of the query, overridden by those given inside the body.

    Raises:
        InvalidParameter: an option of the body is unknown or out of its range.
    """
    if not in_body:
        return query
    return read(ClassifyOptions, {**query.model_dump(exclude_unset=True), **in_body})


async def _read_raw(body: bytes, _content_type: str, _limits: BodyLimits) -> Upload:
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
    return Upload(images, options, many=len(images) > 1)


async def _read_json(body: bytes, _content_type: str, limits: BodyLimits) -> Upload:
    if len(body) < _INLINE_JSON_BYTES:
        return _parse_json(body, limits)
    return await asyncio.to_thread(_parse_json, body, limits)


def _parse_json(body: bytes, limits: BodyLimits) -> Upload:
    # Base64 has no comma, so more of them than this are no pictures; millions of small items would
    # cost a hundred times the body's size to build.
    if body.count(b",") > 2 * limits.max_images + _MAX_OTHER_COMMAS:
        raise InvalidParameter(f"the JSON has too many items, the limit is {limits.max_images}")
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
        return Upload([_from_base64(text) for text in document["images"]], options, many=True)
    known = ", ".join(ClassifyOptions.model_fields)
    raise InvalidParameter(f"the JSON must have image or images (a list), and may have {known}")


def _from_base64(text: object) -> Image:
    if not isinstance(text, str):
        return InvalidParameter("an image must be a string of base64")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    if "\n" in text:  # as MIME wraps it
        text = "".join(text.split())
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return MalformedRequest("an image is not valid base64")


Reader = Callable[[bytes, str, BodyLimits], Awaitable[Upload]]

READERS: Final[dict[str, Reader]] = {
    "multipart/form-data": _read_multipart,
    "application/json": _read_json,
    "": _read_raw,
    "application/octet-stream": _read_raw,
    "binary/octet-stream": _read_raw,
    # What curl --data-binary declares when it is told nothing.
    "application/x-www-form-urlencoded": _read_raw,
    "image/*": _read_raw,
}
"""How each media type is read; a new way to send a picture is a new row."""


def _reader_for(media_type: str) -> Reader:
    key = "image/*" if media_type.startswith("image/") else media_type
    reader = READERS.get(key)
    if reader is None:
        accepted = ", ".join(name for name in READERS if name)
        raise MediaTypeRefused(f"the declared Content-Type is not accepted; accepted: {accepted}")
    return reader

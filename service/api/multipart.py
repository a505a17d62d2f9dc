"""Splits a multipart/form-data body (RFC 7578) that is in memory already into its parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import MalformedRequest

_SLICE_BYTES: Final = 262_144


class _FormParser(MultiPartParser):
    """Starlette's, which keeps files in memory and refuses a form that was cut short."""

    spool_max_size = 0  # no bound: a read-only container has no disk, and the body has a limit
    _ended = False

    def __init__(self, body: bytes, content_type: str, max_parts: int) -> None:
        # What has no file name comes back as text. In Latin-1 each byte is a character, so that
        # nothing is lost of a picture that was sent so. The last charset counts, not the client's.
        headers = Headers({"content-type": f"{content_type}; charset=latin-1"})
        super().__init__(
            headers,
            self._slices(body),
            max_files=max_parts,
            max_fields=max_parts,
            max_part_size=len(body),
        )

    def on_end(self) -> None:
        self._ended = True

    async def _slices(self, body: bytes) -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), _SLICE_BYTES):
            if start:  # parsing 20 MB takes 20 ms, and the event loop has others to look after
                await asyncio.sleep(0)
            yield body[start : start + _SLICE_BYTES]
        if not self._ended:  # said here, where the parser closes what it has opened
            raise MalformedRequest("multipart: the closing boundary is missing")


async def parse_form(
    body: bytes, content_type: str, max_parts: int
) -> list[tuple[str, bytes, bool]]:
    """Splits a form into its parts.

    Args:
        body: the whole body.
        content_type: the header with its boundary parameter.
        max_parts: more parts than this are an error.

    Returns:
        Each part's field name, content, and whether it has a file name, in order.

    Raises:
        MalformedRequest: no boundary, not well-formed, incomplete, a part without a name, or too
            many parts or headers.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise MalformedRequest("multipart: the Content-Type names no boundary")
    # Each would cost the parser a slow path; RFC 2046, 5.1.1 forbids them inside of a part.
    if body.count(b"--" + boundary) > max_parts + 1:
        raise MalformedRequest(f"multipart: more than {max_parts} parts")

    try:
        form = await _FormParser(body, content_type, max_parts).parse()
    except MultiPartException as error:
        well_formed = error.__cause__ is None  # what Starlette refuses, and not the parser below it
        reason = "every part needs a name" if well_formed else "the body is not well-formed"
        raise MalformedRequest(f"multipart: {reason}") from error
    parts = [
        (name, value.file.read(), True)
        if isinstance(value, UploadFile)
        else (name, value.encode("latin-1"), False)
        for name, value in form.multi_items()
    ]
    await form.close()
    return parts

"""Splits a multipart/form-data body (RFC 7578) that is in memory already into its parts.

python-multipart does the parsing. Its form classes would spool large parts to disk, which a
read-only container does not have; the body limit has bounded the memory before this runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

from service.errors import MalformedRequest

_MAX_PART_HEADERS = 16
_MAX_PART_HEADER_BYTES = 4096


@dataclass(slots=True)
class Part:
    """One part of the form.

    Attributes:
        name: the field's name, empty where none is given.
        is_file: a file name was given; the name itself is of no interest and not kept.
        content_type: the part's declared media type, lower case, without parameters.
        data: the part's bytes.
    """

    name: str = ""
    is_file: bool = False
    content_type: str = ""
    data: bytearray = field(default_factory=bytearray)


def parse_multipart(body: bytes, content_type: str, max_parts: int) -> list[Part]:
    """Returns the parts of the body in order.

    Args:
        body: the whole body.
        content_type: the header with its boundary parameter.
        max_parts: more parts than this are an error.

    Raises:
        MalformedRequest: no boundary, not well-formed, incomplete, or too many parts or headers.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise MalformedRequest("multipart: the Content-Type names no boundary")
    # Each would cost the parser a slow path; RFC 2046, 5.1.1 forbids them inside of a part.
    if body.count(b"--" + boundary) > max_parts + 2:
        raise MalformedRequest(f"multipart: more than {max_parts} parts")
    collector = _Collector(max_parts)
    try:
        parser = MultipartParser(
            boundary,
            collector.callbacks(),
            max_header_count=_MAX_PART_HEADERS,
            max_header_size=_MAX_PART_HEADER_BYTES,
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise MalformedRequest("multipart: the body is not well-formed") from error
    if not collector.complete:
        raise MalformedRequest("multipart: the closing boundary is missing")
    return collector.parts


class _Collector:
    """Gathers what the parser calls back with."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.complete = False
        self._max_parts = max_parts
        self._header_name = bytearray()
        self._header_value = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._part_begin,
            "on_part_data": self._part_data,
            "on_header_begin": self._header_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_more,
            "on_header_end": self._header_end,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        if len(self.parts) >= self._max_parts:
            raise MalformedRequest(f"multipart: more than {self._max_parts} parts")
        self.parts.append(Part())

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += data[start:end]

    def _header_begin(self) -> None:
        self._header_name.clear()
        self._header_value.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_more(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        name = bytes(self._header_name).lower()
        value, options = parse_options_header(bytes(self._header_value))
        part = self.parts[-1]
        if name == b"content-disposition":
            part.name = options.get(b"name", b"").decode("utf-8", "replace")
            part.is_file = b"filename" in options
        elif name == b"content-type":
            part.content_type = value.decode("latin-1").lower()

    def _end(self) -> None:
        self.complete = True

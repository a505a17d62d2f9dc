"""convserve's own ways to send pictures, which servers written by hand often understand too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from convserve.loadtest.bodies.answers import parse_json, read_first_classes
from convserve.loadtest.bodies.call import (
    Call,
    Options,
    check_some,
    media_type,
    only_picture,
    path_of,
    to_base64,
    version_part,
)

_BOUNDARY: Final = "----convserve-loadtest-7MA4YWxkTrZu0gW"
_IN_HEADER: Final = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})  # as browsers do


class _Native:
    def first_classes(self, content: bytes) -> list[str]:
        return read_first_classes(parse_json(content))


class Raw(_Native):
    """The picture is the whole body."""

    name = "raw"
    help = "The picture is the whole body."
    many = False

    def call(self, pictures: Sequence[bytes], options: Options) -> Call:
        picture = only_picture(pictures, self.name)
        headers = (("Content-Type", media_type(picture)),)
        return Call("POST", _path(options), headers, picture)


class Multipart(_Native):
    """A form with a file for each picture (RFC 7578)."""

    name = "multipart"
    help = "A form with a file for each picture. --field: the files' name [image]."
    many = True

    def call(self, pictures: Sequence[bytes], options: Options) -> Call:
        check_some(pictures)
        boundary = _BOUNDARY
        while any(boundary.encode("ascii") in picture for picture in pictures):
            boundary += "x"
        field = (options.field or "image").translate(_IN_HEADER)

        parts: list[bytes] = []
        for number, picture in enumerate(pictures, 1):
            kind = media_type(picture)
            suffix = kind.partition("/")[2].replace("jpeg", "jpg").replace("octet-stream", "bin")
            head = (
                f"--{boundary}\r\n"
                f'Content-Disposition: form-data; name="{field}"; '
                f'filename="picture-{number}.{suffix}"\r\n'
                f"Content-Type: {kind}\r\n\r\n"
            )
            parts += (head.encode("utf-8"), picture, b"\r\n")
        parts.append(f"--{boundary}--\r\n".encode("ascii"))

        headers = (("Content-Type", f"multipart/form-data; boundary={boundary}"),)
        return Call("POST", _path(options), headers, b"".join(parts))


class Json(_Native):
    """A JSON object with base64: one string for one picture, a list for several."""

    name = "json"
    help = "JSON with base64. --field: the member [image for one picture, images for several]."
    many = True

    def call(self, pictures: Sequence[bytes], options: Options) -> Call:
        check_some(pictures)
        encoded = [to_base64(picture) for picture in pictures]
        if len(encoded) == 1:
            document: dict[str, str | list[str]] = {options.field or "image": encoded[0]}
        else:
            document = {options.field or "images": encoded}
        headers = (("Content-Type", "application/json"),)
        return Call("POST", _path(options), headers, json.dumps(document).encode("ascii"))


def _path(options: Options) -> str:
    suffix = version_part(options, "/versions/") + "/classify"
    return path_of(options, "/v1/models/", suffix, default="/v1/classify")

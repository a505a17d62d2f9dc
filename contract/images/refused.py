"""Says what a file is that no decoder accepts, and how to get a picture from it that one does."""

from __future__ import annotations

from typing import Final

from contract.images.heif import brand_of
from contract.images.suffixes import is_image_name

_LONGEST_NAME: Final = 4096  # of a path on Linux
_FORM_BYTES: Final = 512  # a boundary has 70 characters at most, and the first header follows
_BRANDS: Final = {
    "avif": (
        "the picture is AVIF, which needs a Pillow that is built with libavif; "
        "convert it to JPEG, PNG or WebP"
    ),
    "heic": (
        "the picture is HEIC, which needs the extra heif (pip install 'convserve[heif]') on the "
        "server; or convert it to JPEG (an iPhone writes JPEG with Settings > Camera > Formats > "
        "Most Compatible)"
    ),
}
_STARTS: Final = (
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "the file is TIFF; convert it to PNG or JPEG"),
    (
        (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
        "the picture is JPEG XL; convert it to JPEG or PNG",
    ),
    (
        (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"),
        "the picture is JPEG 2000; convert it to JPEG or PNG",
    ),
    ((b"%PDF-",), "the file is a PDF document; export its page as JPEG or PNG"),
    ((b"<svg", b"<?xml"), "the file is an SVG drawing or other XML; export it as PNG"),
    (
        (b"version https://git-lfs",),
        "the file is a pointer of Git LFS, not the picture; run git lfs pull where it was cloned",
    ),
    ((b"PK\x03\x04",), "the file is a ZIP archive; unpack it and send the pictures"),
    ((b"\x1f\x8b",), "the bytes are compressed with gzip; send them uncompressed"),
    (
        (b'{"', b"{\n", b"{\r\n", b'["'),
        "the body is JSON, but its Content-Type is not application/json",
    ),
    (
        (b"<!DOCTYPE html", b"<!doctype html", b"<html"),
        "the file is a web page; download the picture that it shows",
    ),
    (
        (b"http://", b"https://", b"url=http"),
        "the body is a URL, and URLs are not fetched; download the picture and send its bytes",
    ),
    (
        (b"data:image/", b"/9j/", b"iVBORw0KGgo", b"UklGR", b"R0lGOD"),
        'the body is base64 text; send the bytes it stands for, or JSON with "image"',
    ),
)


def describe_refused(data: bytes) -> str:
    """Returns what is known about a file that matches no decoder, with advice where there is any.

    Nothing from the file is in the text.
    """
    if not data:
        return "the body is empty"
    brand = brand_of(data)
    if brand is not None:
        return _BRANDS[brand]
    for starts, text in _STARTS:
        if data.startswith(starts):
            return text
    if data.startswith(b"--") and b"content-disposition:" in data[:_FORM_BYTES].lower():
        return (
            "the body is a multipart form, but its Content-Type does not say so; let the client library "
            "set this header"
        )
    if _is_file_name(data):
        return "the bytes are the name of a file, not its content; curl reads the file after an @"
    return "the bytes are not an accepted image format"


def _is_file_name(data: bytes) -> bool:
    text = data.decode("utf-8", "replace").strip()
    return len(data) <= _LONGEST_NAME and text.isprintable() and is_image_name(text)

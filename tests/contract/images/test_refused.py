import base64
import re

import pytest

from contract.errors import UnsupportedMediaType
from contract.images import decode
from contract.images.refused import describe_refused
from tests import pictures


def box(*brands: bytes) -> bytes:
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (len(content) + 4).to_bytes(4, "big") + content + bytes(64)


@pytest.mark.parametrize(
    ("data", "named", "way"),
    [
        (pictures.encode(pictures.RED, "TIFF"), "TIFF", "PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "JPEG XL", "PNG"),
        (b"%PDF-1.7\n", "PDF", "export"),
        (b"<svg xmlns=''/>", "SVG", "PNG"),
        (b'<?xml version="1.0"?>\n<svg/>', "SVG", "PNG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS", "git lfs pull"),
        (b"PK\x03\x04" + bytes(40), "ZIP", "unpack"),
        (b"\x1f\x8b\x08" + bytes(40), "gzip", "uncompressed"),
        (b'{"image": "/9j/4AAQ"}', "JSON", "Content-Type is not application/json"),
        (b'--x\r\nContent-Disposition: form-data; name="a"\r\n', "multipart form", "header"),
        (b"<!DOCTYPE html>\n<html>", "web page", "download"),
        (b"https://example.org/cat.jpg", "URLs are not fetched", "send its bytes"),
        (b"url=https://example.org/cat.jpg", "URLs are not fetched", "send its bytes"),
        (b"photos/cat.JPG\n", "the name of a file", "@"),
        (base64.b64encode(pictures.jpeg()), "base64", "JSON"),
        (base64.b64encode(pictures.png()), "base64", "JSON"),
        (b"data:image/png;base64,iVBORw0KGgo", "base64", "JSON"),
    ],
)
def test_refused_format_is_named_with_the_way_out(data, named, way):
    with pytest.raises(UnsupportedMediaType, match=f"{named}.*{way}.*; accepted are JPEG, PNG"):
        decode(data)


@pytest.mark.parametrize(
    ("data", "named", "way"),
    [
        (box(b"heic", b"mif1", b"heic"), "HEIC", r"convserve\[heif\].*Most Compatible"),
        (box(b"msf1", b"hevc"), "HEIC", "JPEG"),
        (box(b"avif", b"mif1", b"miaf"), "AVIF", "libavif.*WebP"),
        (box(b"mif1", b"miaf", b"avif"), "AVIF", "WebP"),
    ],
)
def test_format_without_its_decoder_is_named_with_both_ways(data, named, way):
    assert re.search(f"{named}.*{way}", describe_refused(data))


@pytest.mark.parametrize(
    "data",
    [
        box(b"qt  "),
        box(b"isom", b"mp41"),
        b"ftyp",
        b"\0\0\0\x08ftyp",
        b"text",
        bytes(100),
        b"\0.jpg",
    ],
)
def test_unknown_bytes_are_not_named(data):
    assert describe_refused(data) == "the bytes are not an accepted image format"


def test_empty_body_is_named():
    assert describe_refused(b"") == "the body is empty"


def test_endless_list_of_brands_is_not_read_to_its_end():
    data = b"\xff\xff\xff\xffftypisom" + bytes(400) + b"heic"

    assert describe_refused(data) == "the bytes are not an accepted image format"

"""Broken uploads, made from good pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from random import Random
from typing import Final

from contract.errors import ImageError
from contract.images import decode_reduced, inspect
from convserve.loadtest.pictures.reading import NoPictures, Picture

_PAGE: Final = (
    b"<!doctype html>\n<html><head><title>404 Not Found</title></head>\n"
    b"<body><h1>Not Found</h1></body></html>\n"
)
_HEIC: Final = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic"  # how a phone's HEIC file begins
_MAGIC_BYTES: Final = 12  # as many as the longest magic number has, WebP's
_SHORTER_SIDE_PX: Final = 224  # as the service does: a large JPEG is decoded at a reduced size


def break_pictures(pictures: Sequence[Picture], n: int, seed: int = 0) -> list[Picture]:
    """Makes `n` broken uploads, the kinds in turn.

    A file cut off, garbage behind a magic number, a web page, a HEIC file, and nothing at all. None
    of them can be decoded by the service, which is checked here: of some files, such as animations,
    the beginning is a picture of its own.

    Raises:
        NoPictures: there is nothing to break.
    """
    if not pictures:
        raise NoPictures("there are no pictures to break")

    random = Random(seed)  # noqa: S311 - repeatable
    kinds = list(_KINDS)
    broken = []
    for number in range(1, n + 1):
        kind = kinds[(number - 1) % len(kinds)]
        picture = random.choice(pictures)
        content = _KINDS[kind](picture.content, random)
        suffix = PurePosixPath(picture.name).suffix
        broken.append(Picture(f"broken-{number:04}-{kind}{suffix}", content))
    return broken


def _cut(content: bytes, random: Random) -> bytes:
    part = content[: int(len(content) * random.uniform(0.1, 0.9))]
    while _is_picture(part):
        part = part[: len(part) // 2]
    return part


def _garbage(content: bytes, random: Random) -> bytes:
    magic = content[:_MAGIC_BYTES]
    while True:
        made = magic + random.randbytes(max(100, len(content) - len(magic)))
        if not _is_picture(made):
            return made


def _is_picture(content: bytes) -> bool:
    try:
        decode_reduced(inspect(content), _SHORTER_SIDE_PX)
    except ImageError:
        return False
    return True


_KINDS: Final[dict[str, Callable[[bytes, Random], bytes]]] = {
    "cut": _cut,
    "garbage": _garbage,
    "page": lambda _content, _random: _PAGE,
    "heic": lambda content, random: _HEIC + random.randbytes(len(content)),
    "empty": lambda _content, _random: b"",
}

"""Walks the boxes of an ISO base media file, with limits.

A box is a length, four letters and a content, which can be boxes. Nothing here recurses: each caller
names the boxes that it opens, so a file decides neither depth nor order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from contract.errors import ImageTooComplex, ImageTruncated, ImageUndecodable

MAX_BOXES: Final = 1_000
"""Most boxes in one box. A phone's picture has about 70 items and 30 properties."""

_AVIF: Final = frozenset({b"avif", b"avis"})
_HEIC: Final = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
_ANY_CODING: Final = frozenset({b"mif1", b"msf1"})
_BRANDS_END: Final = 256  # the longest list of brands that is read; real ones have about 10


class Fields:
    """Reads the fields of a part of a file, one after the other.

    Every method that reads raises `ImageUndecodable` instead of reading beyond the part's end.
    """

    __slots__ = ("data", "position", "stop")

    def __init__(self, data: bytes, start: int = 0, stop: int | None = None) -> None:
        self.data, self.position = data, start
        self.stop = len(data) if stop is None else stop

    def take(self, n_bytes: int) -> bytes:
        """Returns the next bytes."""
        start, end = self.position, self.position + n_bytes
        if end > self.stop:
            raise ImageUndecodable("a part of the file ends before its content does")
        self.position = end
        return self.data[start:end]

    def number(self, n_bytes: int) -> int:
        """Returns the next unsigned number of this many bytes, big-endian; 0 for no bytes."""
        return int.from_bytes(self.take(n_bytes), "big")

    def rest(self) -> bytes:
        """Returns everything that is left."""
        return self.take(self.left)

    @property
    def left(self) -> int:
        """Number of bytes that are left."""
        return self.stop - self.position

    def version(self) -> tuple[int, int]:
        """Returns the version and the flags that a full box begins with."""
        return self.number(1), self.number(3)


def boxes(parent: Fields) -> Iterator[tuple[bytes, Fields]]:
    """Yields (type, content) of the boxes in the rest of a part.

    Raises:
        ImageTooComplex: there are more than `MAX_BOXES`.
        ImageTruncated: a box is longer than the file.
        ImageUndecodable: a length is impossible.
    """
    position, stop = parent.position, parent.stop
    for _ in range(MAX_BOXES):
        if position == stop:
            return
        head = Fields(parent.data, position, stop)
        length, kind = head.number(4), head.take(4)
        if length == 1:
            length = head.number(8)
        end = position + length if length else stop  # 0: up to the end
        if end > len(parent.data):
            raise ImageTruncated("the file ends before the picture is complete")
        if not head.position <= end <= stop:
            raise ImageUndecodable("a box of the file has an impossible length")
        yield kind, Fields(parent.data, head.position, end)
        position = end
    raise ImageTooComplex(f"the file has more than {MAX_BOXES:,} boxes in one place")


def check_count(n: int, most: int, what: str) -> None:
    """Raises `ImageTooComplex` if there are more than a limit."""
    if n > most:
        raise ImageTooComplex(f"the file has more than {most:,} {what}")


def brand_of(data: bytes) -> str | None:
    """Returns "heic" or "avif" by the brands at the beginning of a file; None if it is neither."""
    # ISO/IEC 14496-12, 4.3: length, "ftyp", the major brand, its version, compatible brands.
    if data[4:8] != b"ftyp":
        return None
    major = data[8:12]
    end = min(int.from_bytes(data[:4], "big"), _BRANDS_END)
    brands = {data[at : at + 4] for at in (8, *range(16, end, 4))}
    if major in _AVIF or (brands & _AVIF and major not in _HEIC - _ANY_CODING):
        return "avif"
    return "heic" if brands & _HEIC else None

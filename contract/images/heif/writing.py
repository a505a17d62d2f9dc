"""Writes a HEIF file that holds one picture and nothing else.

A decoder reads this file instead of the one that was sent. It has no profile, thumbnail or film, no
rotation or crop, one size for each item, and every number in it was checked or made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from contract.images.heif.pictures import CONFIGS, Coded, Grid, HeifPicture

_ALPHA: Final = b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0"
_ESSENTIAL: Final = 0x80  # a decoder must know this property
_FULL: Final = bytes(4)  # version 0 and no flags
_PICTURE_HANDLER: Final = _FULL + bytes(4) + b"pict" + bytes(13)


def write_file(picture: HeifPicture, brand: str) -> bytes:
    """Returns a file of the picture alone.

    Args:
        picture: from `read_picture`.
        brand: a key of `CODINGS`.
    """
    file = _File()
    shown = file.add(picture.colours)
    if picture.alpha is not None:
        alpha = file.add(picture.alpha, _box(b"auxC", _FULL + _ALPHA))
        file.refer(b"auxl", alpha, (shown,))
        if picture.premultiplied:
            file.refer(b"prem", shown, (alpha,))
    return file.write(brand, shown)


class _File:
    """Collects items and their properties. Items are numbered from 1."""

    def __init__(self) -> None:
        self._kinds: list[bytes] = []
        self._contents: list[bytes] = []
        self._properties: dict[bytes, int] = {}
        self._associations: list[bytes] = []
        self._references: list[bytes] = []

    def add(self, picture: Coded | Grid, *more: bytes) -> int:
        """Adds a picture and its tiles; returns the number of its item."""
        size = _box(b"ispe", _FULL + _number(picture.size[0], 4) + _number(picture.size[1], 4))
        colour = [_box(b"colr", picture.colour)] if picture.colour else []
        if isinstance(picture, Coded):
            config = _box(CONFIGS[picture.kind], picture.config)
            return self._item(picture.kind, picture.data, (config, size, *colour, *more))

        tiles = [self.add(tile) for tile in picture.tiles]
        rows = len(tiles) // picture.columns
        content = bytes([0, 1, rows - 1, picture.columns - 1]) + size[-8:]
        grid = self._item(b"grid", content, (size, *colour, *more))
        self.refer(b"dimg", grid, tiles)
        return grid

    def _item(self, kind: bytes, content: bytes, properties: Sequence[bytes]) -> int:
        self._kinds.append(kind)
        self._contents.append(content)
        used = []
        for stored in properties:
            number = self._properties.setdefault(stored, len(self._properties) + 1)
            used.append(number | (_ESSENTIAL if stored[4:8] in CONFIGS.values() else 0))
        self._associations.append(bytes([len(used), *used]))
        return len(self._kinds)

    def refer(self, kind: bytes, item: int, targets: Sequence[int]) -> None:
        """Adds references from an item to others."""
        numbers = b"".join(_number(n, 2) for n in (item, len(targets), *targets))
        self._references.append(_box(kind, numbers))

    def write(self, brand: str, shown: int) -> bytes:
        """Returns the file, with the item that it shows."""
        brand_name = brand.encode()
        head = _box(b"ftyp", brand_name + bytes(4) + brand_name + b"mif1" + b"miaf")
        # The description has the same length wherever the contents are.
        length = len(head) + len(self._describe(shown, 0)) + 8
        contents = b"".join(self._contents)
        return head + self._describe(shown, length) + _box(b"mdat", contents)

    def _describe(self, shown: int, start: int) -> bytes:
        entries, places, associations = [], [], []
        for item, (kind, content, used) in enumerate(
            zip(self._kinds, self._contents, self._associations, strict=True), start=1
        ):
            entries.append(_box(b"infe", b"\2\0\0\0" + _number(item, 2) + bytes(2) + kind + b"\0"))
            place = _number(1, 2) + _number(start, 4) + _number(len(content), 4)
            places.append(_number(item, 2) + bytes(2) + place)
            associations.append(_number(item, 2) + used)
            start += len(content)
        n_items = len(entries)
        properties = _box(b"ipco", b"".join(self._properties))
        properties += _box(b"ipma", _FULL + _number(n_items, 4) + b"".join(associations))
        parts = (
            _box(b"hdlr", _PICTURE_HANDLER),
            _box(b"pitm", _FULL + _number(shown, 2)),
            _box(b"iloc", _FULL + b"\x44\0" + _number(n_items, 2) + b"".join(places)),
            _box(b"iinf", _FULL + _number(n_items, 2) + b"".join(entries)),
            _box(b"iref", _FULL + b"".join(self._references)) if self._references else b"",
            _box(b"iprp", properties),
        )
        return _box(b"meta", _FULL + b"".join(parts))


def _box(kind: bytes, content: bytes) -> bytes:
    return _number(8 + len(content), 4) + kind + content


def _number(value: int, n_bytes: int) -> bytes:
    return value.to_bytes(n_bytes, "big")

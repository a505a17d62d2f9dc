"""Writes HEIF files with any contradiction in them. `contract.images.heif.writing` cannot.

The tests here and `tests.corpora.odd_heif` use it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from contract.images.heif import HeifLimits, brand_of, read_picture
from contract.images.heif.decoders import OPENERS
from contract.images.heif.pictures import CONFIGS, Coded
from tests import pictures
from tests.contract.images.heif import FILES

WIDE = HeifLimits(10**9, 10**10)
needs_heic = pytest.mark.skipif("heic" not in OPENERS, reason="pi-heif is not installed")


def number(value: int, n_bytes: int) -> bytes:
    return value.to_bytes(n_bytes, "big")


def box(kind: bytes, *contents: bytes) -> bytes:
    content = b"".join(contents)
    return number(8 + len(content), 4) + kind + content


def ispe(width: int, height: int) -> bytes:
    return box(b"ispe", bytes(4), number(width, 4), number(height, 4))


def grid_content(rows: int, columns: int, width: int, height: int) -> bytes:
    return bytes([0, 0, rows - 1, columns - 1]) + number(width, 2) + number(height, 2)


ALPHA = box(b"auxC", bytes(4), b"urn:mpeg:hevc:2015:auxid:1\0")


@dataclass(frozen=True)
class Item:
    """An item of a file.

    Attributes:
        kind: its type.
        content: its bytes.
        properties: its properties, as boxes.
        shares: number of another item whose bytes it has instead of its own.
        extent: (start, length) in the file instead of where its content is.
        n_extents: how often these bytes are listed as a part of it.
        method: how its bytes are found; 0 in the file, 1 in `idat`, 2 in another item.
        protected: whether it is declared as encrypted.
    """

    kind: bytes
    content: bytes = b""
    properties: tuple[bytes, ...] = ()
    shares: int = 0
    extent: tuple[int, int] | None = None
    n_extents: int = 1
    method: int = 0
    protected: bool = False


def heif(
    *items: Item,
    primary: int = 1,
    references: Sequence[tuple[bytes, int, Sequence[int]]] = (),
    brand: bytes = b"heic",
) -> bytes:
    """Returns a file of items, which are numbered from 1."""
    head = box(b"ftyp", brand, bytes(4), brand, b"mif1")
    start = len(head) + len(_meta(items, primary, references, 0)) + 8
    content = b"".join(item.content for item in items)
    return head + _meta(items, primary, references, start) + box(b"mdat", content)


def _meta(
    items: Sequence[Item],
    primary: int,
    references: Sequence[tuple[bytes, int, Sequence[int]]],
    start: int,
) -> bytes:
    starts = [start]
    for item in items:
        starts.append(starts[-1] + len(item.content))
    stored: dict[bytes, int] = {}
    entries, places, associations = [], [], []
    for index, item in enumerate(items):
        protected = number(int(item.protected), 2)
        entries.append(box(b"infe", b"\2\0\0\0", number(index + 1, 2), protected, item.kind, b"\0"))
        source = item.shares - 1 if item.shares else index
        at, length = item.extent or (starts[source], len(items[source].content))
        places.append(
            number(index + 1, 2)
            + number(item.method, 2)
            + bytes(2)
            + number(item.n_extents, 2)
            + (number(at, 4) + number(length, 4)) * item.n_extents
        )
        used = [stored.setdefault(p, len(stored) + 1) for p in item.properties]
        associations.append(number(index + 1, 2) + bytes([len(used), *used]))
    n = len(items)
    refs = b"".join(
        box(kind, number(item, 2), number(len(targets), 2), *(number(t, 2) for t in targets))
        for kind, item, targets in references
    )
    ipma = box(b"ipma", bytes(4), number(n, 4), *associations)
    return box(
        b"meta",
        bytes(4),
        box(b"hdlr", bytes(8), b"pict", bytes(13)),
        box(b"pitm", bytes(4), number(primary, 2)),
        box(b"iinf", bytes(4), number(n, 2), *entries),
        box(b"iloc", b"\1\0\0\0", b"\x44\0", number(n, 2), *places),
        box(b"iref", bytes(4), refs),
        box(b"iprp", box(b"ipco", *stored), ipma),
    )


def coded(name: str = "plain.heic") -> Coded:
    """Returns the coded item of a committed file, 64 x 64 pixels of HEVC."""
    data = (FILES / name).read_bytes()
    brand = brand_of(data)
    assert brand is not None
    part = read_picture(data, brand, WIDE).colours
    assert isinstance(part, Coded)
    return part


def coded_avif(size: tuple[int, int] = (64, 64)) -> Coded:
    """Returns the coded item of an AVIF that Pillow makes."""
    data = pictures.encode(pictures.photo(size), "AVIF")
    part = read_picture(data, "avif", WIDE).colours
    assert isinstance(part, Coded)
    return part


def item_of(part: Coded, *more: bytes, size: tuple[int, int] | None = None) -> Item:
    """Returns a coded item with its properties; `size` is declared instead of the right one."""
    declared = ispe(*(size or part.size))
    config = box(CONFIGS[part.kind], part.config)
    colour = (box(b"colr", part.colour),) if part.colour else ()
    return Item(part.kind, part.data, (config, declared, *colour, *more))


def avif(*items: Item) -> bytes:
    """Returns an AVIF file whose first item is shown."""
    return heif(*items, brand=b"avif")


def composed(kind: bytes, content: bytes, *targets: int) -> bytes:
    """Returns a file that shows an item made of others. Item 1 is coded, this one is item 2."""
    shown = Item(kind, content, (ispe(64, 64),))
    return heif(item_of(coded()), shown, primary=2, references=[(b"dimg", 2, targets)])


def grid(tiles: Sequence[Item], rows: int, columns: int, size: tuple[int, int]) -> bytes:
    """Returns a file that shows a grid of all the tiles, of any declared size."""
    n = len(tiles)
    shown = Item(b"grid", grid_content(rows, columns, *size), (ispe(*size),))
    references = [(b"dimg", n + 1, range(1, n + 1))]
    brand = b"avif" if tiles[0].kind == b"av01" else b"heic"
    return heif(*tiles, shown, primary=n + 1, references=references, brand=brand)


def sharing(item: Item, number_of: int = 1) -> Item:
    """Returns an item that has the bytes of another one."""
    return replace(item, content=b"", shares=number_of)


def with_alpha(shown: Item, *alphas: Item) -> bytes:
    """Returns a file of a picture with one or more items for its transparency."""
    references = [(b"auxl", number_of, [1]) for number_of in range(2, len(alphas) + 2)]
    brand = b"avif" if shown.kind == b"av01" else b"heic"
    return heif(shown, *alphas, references=references, brand=brand)


def split_avif(part: Coded) -> tuple[bytes, bytes]:
    """Returns the sequence header of an AV1 item, and the rest, which is its frame."""
    stop = 2 + part.data[1]  # a byte of type, one of length
    return part.data[:stop], part.data[stop:]


def avif_of_two_frames() -> bytes:
    part = coded_avif()
    return avif(item_of(replace(part, data=part.data + split_avif(part)[1])))


def lying_avif(size: tuple[int, int]) -> bytes:
    """Returns an AVIF of this size that declares 64 x 64 pixels."""
    data = pictures.encode(pictures.picture(size=size), "AVIF", speed=10)
    return data.replace(ispe(*size), ispe(64, 64))

"""Reads the items of a HEIF file: which one is shown, how it is coded, where its bytes are.

ISO/IEC 23008-12 (HEIF) stores pictures, thumbnails and metadata as numbered items in one `meta` box.
Properties such as the size are stored once and associated with items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from contract.errors import ImageTooComplex, ImageTruncated, ImageUndecodable
from contract.images.headers import Size
from contract.images.heif.boxes import MAX_BOXES, Fields, boxes, check_count

MAX_BYTES: Final = 1 << 31
"""Largest file, so that what is written of it has lengths of four bytes."""

MAX_ITEMS: Final = MAX_BOXES
MAX_ASSOCIATIONS: Final = 8_000
"""Most pairs of an item and a property in a file."""

MAX_REFERENCES: Final = 4_000
"""Most items that all references in a file name together."""

_MAX_TOP_BOXES: Final = 64
_OFFSET_BYTES: Final = frozenset({0, 4, 8})
_IN_FILE, _IN_BOX = 0, 1  # where an item's bytes are: in the file, or in the box `idat`


@dataclass(frozen=True, slots=True)
class Location:
    """Where an item's bytes are.

    Attributes:
        base: 0 or the offset of the content of `idat`.
        extents: (start, length) of its parts, counted from `base`.
    """

    base: int
    extents: tuple[tuple[int, int], ...]


class Items:
    """The `meta` box of a file, read piece by piece as its parts are asked for.

    Raises (every property and method):
        ImageTooComplex: there are more boxes, items or associations than any program writes.
        ImageTruncated: the file ends too early.
        ImageUndecodable: the file contradicts itself.
    """

    def __init__(self, data: bytes) -> None:
        check_count(len(data), MAX_BYTES, "bytes")
        self.data = data
        self._boxes = _unique_boxes(_meta(data))

    def _box(self, kind: bytes) -> Fields:
        found = self._boxes.get(kind)
        if found is None:
            raise ImageUndecodable("the file lacks a box that describes its picture")
        return Fields(self.data, found.position, found.stop)

    @cached_property
    def primary(self) -> int:
        """Number of the item that is shown."""
        box = self._box(b"pitm")
        version, _ = box.version()
        return box.number(2 if version == 0 else 4)

    @cached_property
    def kinds(self) -> dict[int, bytes]:
        """The type of each item, such as b"hvc1" or b"grid"."""
        box = self._box(b"iinf")
        version, _ = box.version()
        box.take(2 if version == 0 else 4)  # the number of entries
        kinds: dict[int, bytes] = {}
        for kind, entry in boxes(box):
            version, _ = entry.version()
            if kind != b"infe" or version not in (2, 3):
                continue
            number = entry.number(2 if version == 2 else 4)
            protected = entry.number(2)
            if number in kinds:
                raise ImageUndecodable("the file describes an item twice")
            kinds[number] = b"" if protected else entry.take(4)
        return kinds

    @cached_property
    def locations(self) -> dict[int, Location]:
        """Where the bytes of each item are; without items in other files or other items."""
        box = self._box(b"iloc")
        version, _ = box.version()
        if version > 2:
            raise ImageUndecodable("the file locates its items in an unknown way")
        sizes = box.number(2)
        offset_bytes, length_bytes, base_bytes = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
        index_bytes = sizes & 15 if version else 0
        if not _OFFSET_BYTES.issuperset((offset_bytes, length_bytes, base_bytes, index_bytes)):
            raise ImageUndecodable("the file locates its items in an unknown way")

        number_bytes = 2 if version < 2 else 4
        n_items = box.number(number_bytes)
        check_count(n_items, MAX_ITEMS, "items")
        found: dict[int, Location] = {}
        total = 0
        for _ in range(n_items):
            number = box.number(number_bytes)
            method = box.number(2) & 15 if version else _IN_FILE
            elsewhere = box.number(2) != 0
            base = box.number(base_bytes)
            n_extents = box.number(2)
            total += n_extents
            check_count(total, MAX_REFERENCES, "parts of items")
            extents = []
            for _ in range(n_extents):
                box.take(index_bytes)
                extents.append((base + box.number(offset_bytes), box.number(length_bytes)))
            if number in found:
                raise ImageUndecodable("the file locates an item twice")
            if method == _IN_FILE and not elsewhere:
                found[number] = Location(0, tuple(extents))
            elif method == _IN_BOX:
                found[number] = Location(self._box(b"idat").position, tuple(extents))
        return found

    @cached_property
    def references(self) -> dict[tuple[bytes, int], tuple[int, ...]]:
        """The items that an item refers to, by (type, item)."""
        found: dict[tuple[bytes, int], tuple[int, ...]] = {}
        if b"iref" not in self._boxes:
            return found
        box = self._box(b"iref")
        version, _ = box.version()
        number_bytes = 2 if version == 0 else 4
        total = 0
        for kind, entry in boxes(box):
            item, n = entry.number(number_bytes), entry.number(2)
            total += n
            check_count(total, MAX_REFERENCES, "references")
            if (kind, item) in found:
                raise ImageUndecodable("the file has a list of references twice")
            found[kind, item] = tuple(entry.number(number_bytes) for _ in range(n))
        return found

    def properties(self, item: int) -> list[tuple[bytes, Fields]]:
        """Returns (type, content) of an item's properties, in the order in which they apply."""
        return [
            (kind, Fields(self.data, content.position, content.stop))
            for kind, content in map(self._property, self._associations.get(item, ()))
        ]

    def size(self, item: int) -> Size:
        """Returns the declared (width, height) of an item, in pixels."""
        contents = [content for kind, content in self.properties(item) if kind == b"ispe"]
        if len(contents) != 1:
            raise ImageUndecodable("the file does not declare the size of its picture once")
        contents[0].version()
        return contents[0].number(4), contents[0].number(4)

    def content(self, item: int) -> bytes:
        """Returns an item's bytes."""
        return b"".join(self.data[start:stop] for start, stop in self.spans(item))

    def spans(self, item: int) -> list[tuple[int, int]]:
        """Returns (start, stop) in the file of the parts of an item."""
        location = self.locations.get(item)
        if location is None or not location.extents:
            raise ImageUndecodable("the file does not say where its picture is")
        end = self._box(b"idat").stop if location.base else len(self.data)
        spans = [(location.base + at, location.base + at + n) for at, n in location.extents]
        if any(start == stop for start, stop in spans):  # 0 means everything; nobody writes it
            raise ImageUndecodable("a part of the picture has no bytes")
        if any(stop > end for _, stop in spans):
            raise ImageTruncated("the file ends before the picture is complete")
        return spans

    @cached_property
    def _stored_properties(self) -> list[tuple[bytes, Fields]]:
        containers = [content for kind, content in boxes(self._box(b"iprp")) if kind == b"ipco"]
        if len(containers) != 1:
            raise ImageUndecodable("the file has no list of properties, or several")
        return list(boxes(containers[0]))

    def _property(self, index: int) -> tuple[bytes, Fields]:
        if not 0 < index <= len(self._stored_properties):
            raise ImageUndecodable("the file names a property that it lacks")
        return self._stored_properties[index - 1]

    @cached_property
    def _associations(self) -> dict[int, tuple[int, ...]]:
        found: dict[int, tuple[int, ...]] = {}
        total = 0
        for kind, box in boxes(self._box(b"iprp")):
            if kind != b"ipma":
                continue
            version, flags = box.version()
            number_bytes, index_bytes = (2 if version == 0 else 4), (2 if flags & 1 else 1)
            essential = 0x80 << 8 * (index_bytes - 1)
            n_items = box.number(4)
            check_count(n_items, MAX_ITEMS, "items")
            for _ in range(n_items):
                item, n = box.number(number_bytes), box.number(1)
                total += n + 1
                check_count(total, MAX_ASSOCIATIONS, "properties of items")
                if item in found:
                    raise ImageUndecodable("the file describes an item twice")
                indices = (box.number(index_bytes) & ~essential for _ in range(n))
                found[item] = tuple(index for index in indices if index)
        return found


def declared_size(data: bytes) -> Size | None:
    """Returns the declared (width, height) of the picture that is shown, before it is turned.

    None if the file does not say. The compressed data can differ; `read_picture` compares them.
    """
    try:
        items = Items(data)
        return items.size(items.primary)
    except (ImageUndecodable, ImageTruncated, ImageTooComplex):
        return None  # the complete walk reports it


def _meta(data: bytes) -> Iterator[tuple[bytes, Fields]]:
    for index, (kind, content) in enumerate(boxes(Fields(data))):
        if kind == b"meta":
            content.version()
            return boxes(content)
        check_count(index + 1, _MAX_TOP_BOXES, "boxes before the description of its picture")
    raise ImageUndecodable("the file has no still picture")


def _unique_boxes(found: Iterator[tuple[bytes, Fields]]) -> dict[bytes, Fields]:
    unique: dict[bytes, Fields] = {}
    for kind, content in found:
        if kind in unique and kind not in (b"free", b"skip", b"uuid"):
            raise ImageUndecodable("the file has a box twice that it may have once")
        unique[kind] = content
    return unique

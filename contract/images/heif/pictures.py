"""Finds the picture that a HEIF file shows, and checks everything that its decoder will read.

Accepted are one coded item, and a grid of coded items that are all of one kind, no larger together
than the picture and one row and column. Either can have a second one that holds its transparency.
Thumbnails, depth maps, gain maps, further pictures and films are never read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from contract.errors import (
    ImageTooComplex,
    ImageTooManyPixels,
    ImageUndecodable,
    UnsupportedMediaType,
)
from contract.images.headers import Size
from contract.images.heif.av1 import read_av1_picture
from contract.images.heif.boxes import Fields, check_count
from contract.images.heif.hevc import HevcConfig, read_hevc_config, read_hevc_picture
from contract.images.heif.items import Items

MAX_TILES: Final = 256
"""Most tiles of a grid. Phones write 512 x 512 pixels each, 48 megapixels in 192."""

CODINGS: Final = {"heic": b"hvc1", "avif": b"av01"}
CONFIGS: Final = {b"hvc1": b"hvcC", b"av01": b"av1C"}

_ALPHA: Final = (
    b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha",
    b"urn:mpeg:hevc:2015:auxid:1",
)
_MAX_OVERHANG_PX: Final = 1024  # of the last tiles over a side; tiles of phones have 512
_LONGEST_NAME: Final = 64  # of a kind of auxiliary picture, as far as it is read
_MAX_CONFIG_BYTES: Final = 1 << 17  # of `hvcC`; real ones have about 100
_IN_COMMON: Final = "two parts of the picture have bytes in common"
_TRANSFORMS: Final = frozenset({b"clap", b"irot", b"imir"})
_COLOUR_BYTES: Final = 11  # of a `colr` box with numbers; one with an ICC profile is not kept
_AV1_CONFIG_BYTES: Final = 4
# EXIF 2.32, 4.6.4, by the number of quarter turns against the clock, without and with a mirror
# image (left and right exchanged) afterwards.
_TURNED: Final = (1, 8, 3, 6)
_TURNED_AND_MIRRORED: Final = (2, 7, 4, 5)


@dataclass(frozen=True, slots=True)
class HeifLimits:
    """Limits on a picture.

    Attributes:
        max_pixels: width x height of the picture. Transparency counts as another picture, and
            HEVC with more than 8 bits or finer colours than 4:2:0 counts twice. A quarter more may
            be coded, because tiles and blocks reach over the sides.
        max_slice_pixels: largest sum over all coded items of slices x width x height. A slice can
            go through the whole item, whatever the other slices do.
    """

    max_pixels: int
    max_slice_pixels: int


@dataclass(frozen=True, slots=True)
class Coded:
    """One coded item.

    Attributes:
        kind: the type of the item.
        size: (width, height), in pixels.
        config: content of the box that describes the coding.
        colour: content of a `colr` box with numbers; empty without one.
        data: the compressed data, without anything that makes no pixels.
    """

    kind: bytes
    size: Size
    config: bytes = field(repr=False)
    colour: bytes
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Grid:
    """A picture that is composed of tiles, row by row.

    Attributes:
        size: (width, height), in pixels. The last tiles can reach beyond it.
        columns: tiles in a row.
        tiles: items of the same size and coding.
        colour: as in `Coded`.
    """

    size: Size
    columns: int
    tiles: tuple[Coded, ...]
    colour: bytes


@dataclass(frozen=True, slots=True)
class HeifPicture:
    """The picture that a file shows.

    Attributes:
        colours: the picture.
        alpha: its transparency, of the same size.
        premultiplied: whether the colours are multiplied with the transparency.
        crop: (left, top, right, bottom) of what is shown, before it is turned; None if it is all.
        orientation: EXIF's number for what must be undone to show it upright. Programs apply only
            this, and not the number in the EXIF block, which cameras write in addition.
    """

    colours: Coded | Grid
    alpha: Coded | Grid | None
    premultiplied: bool
    crop: tuple[int, int, int, int] | None
    orientation: int


def read_picture(data: bytes, brand: str, limits: HeifLimits) -> HeifPicture:
    """Finds and checks the picture that a file shows.

    Args:
        data: the whole file.
        brand: a key of `CODINGS`.
        limits: limits on the picture.

    Raises:
        UnsupportedMediaType: it is coded or composed in a way that is not accepted.
        ImageTooManyPixels, ImageTooComplex: a limit is exceeded.
    """
    items = Items(data)
    reading = _Reading(items, brand, limits)
    shown = items.primary
    colours = reading.picture(shown)
    alpha_item = _alpha_of(items, shown)
    alpha = None if alpha_item is None else reading.picture(alpha_item)
    if alpha is not None and alpha.size != colours.size:
        raise ImageUndecodable("the transparency has another size than the picture")
    crop, orientation = _transforms(items, shown, colours.size)
    premultiplied = alpha_item in items.references.get((b"prem", shown), ())
    return HeifPicture(colours, alpha, premultiplied, crop, orientation)


class _Reading:
    """Reads the items of one picture and adds up what they cost."""

    def __init__(self, items: Items, brand: str, limits: HeifLimits) -> None:
        self._items, self._brand, self._limits = items, brand, limits
        self._pixels = self._coded_pixels = self._slice_pixels = self._bytes = 0
        self._weight = 1
        self._spans: list[tuple[int, int]] = []
        self._configs: dict[bytes, HevcConfig] = {}

    def picture(self, item: int) -> Coded | Grid:
        size = self._items.size(item)
        self._check_pixels(size)
        found = self._grid(item) if self._kind(item) == b"grid" else self._coded(item)
        self._check_overlaps()
        self._check_pixels(size)  # now that its bits and colours are known
        self._pixels += size[0] * size[1]
        return found

    def _check_pixels(self, size: Size) -> None:
        pixels = self._pixels + size[0] * size[1]
        most = self._limits.max_pixels // self._weight
        if pixels > most:
            raise ImageTooManyPixels(
                f"the {self._brand.upper()} image has {size[0]} x {size[1]} pixels, "
                f"{pixels / 1e6:.1f} million with any transparency; the limit is "
                f"{most / 1e6:.1f} million for its bits and colours"
            )

    def _kind(self, item: int) -> bytes:
        kind = self._items.kinds.get(item)
        if kind is None:
            raise ImageUndecodable("the file lacks the item that is its picture")
        return kind

    def _grid(self, item: int) -> Grid:
        # ISO/IEC 23008-12, 6.6.2.3
        self._claim(item)
        fields = Fields(self._items.content(item))
        fields.take(1)
        number_bytes = 4 if fields.number(1) & 1 else 2
        rows, columns = fields.number(1) + 1, fields.number(1) + 1
        size = fields.number(number_bytes), fields.number(number_bytes)
        parts = self._items.references.get((b"dimg", item), ())
        if size != self._items.size(item) or len(parts) != rows * columns:
            raise ImageUndecodable("the grid of tiles contradicts the rest of the file")
        if len(parts) > MAX_TILES:
            raise ImageTooComplex(f"the picture has {len(parts):,} tiles, the limit is {MAX_TILES}")
        if len(set(parts)) != len(parts):
            raise ImageUndecodable("the grid shows a tile twice")

        width, height = self._items.size(parts[0])
        for tile, n, whole in ((width, columns, size[0]), (height, rows, size[1])):
            if not (n - 1) * tile < whole <= n * tile or n * tile - whole > _MAX_OVERHANG_PX:
                raise ImageUndecodable("the tiles are larger or smaller than the picture needs")
        tiles = tuple(self._tile(part, (width, height)) for part in parts)
        if any((tile.config, tile.colour) != (tiles[0].config, tiles[0].colour) for tile in tiles):
            raise ImageUndecodable("the tiles are not all coded in the same way")
        return Grid(size, columns, tiles, _colour(self._items, item))

    def _tile(self, item: int, size: Size) -> Coded:
        if self._items.size(item) != size:
            raise ImageUndecodable("the tiles are not all of one size")
        if any(kind in _TRANSFORMS for kind, _ in self._items.properties(item)):
            raise UnsupportedMediaType("the picture has tiles that are turned or cropped")
        return self._coded(item)

    def _coded(self, item: int) -> Coded:
        kind = self._kind(item)
        if kind != CODINGS[self._brand]:
            raise UnsupportedMediaType(
                f"the {self._brand.upper()} file composes its picture, or codes it, "
                "in a way that is not accepted; convert it to JPEG or PNG"
            )
        contents = [c for name, c in self._items.properties(item) if name == CONFIGS[kind]]
        if len(contents) != 1:
            raise ImageUndecodable("the file does not describe once how its picture is coded")
        size, colour = self._items.size(item), _colour(self._items, item)
        self._claim(item)
        if kind == b"av01":
            return self._av1(item, size, contents[0], colour)
        return self._hevc(item, size, contents[0], colour)

    def _av1(self, item: int, size: Size, content: Fields, colour: bytes) -> Coded:
        data, coded_size = read_av1_picture(self._items.content(item))
        _check_declared(size, coded_size)
        self._add_coded(coded_size)
        return Coded(b"av01", size, content.take(_AV1_CONFIG_BYTES), colour, data)

    def _hevc(self, item: int, size: Size, content: Fields, colour: bytes) -> Coded:
        check_count(content.left, _MAX_CONFIG_BYTES, "bytes of parameter sets")
        stored = content.rest()
        config = self._configs.get(stored)
        if config is None:
            config = self._configs[stored] = read_hevc_config(Fields(stored))
        _check_declared(size, config.size)
        self._weight = max(self._weight, config.weight)
        self._add_coded(config.coded_size)
        data, n_slices = read_hevc_picture(self._items.content(item), config)
        self._add_slices(config.coded_size, n_slices)
        return Coded(b"hvc1", size, config.box, colour, data)

    def _claim(self, item: int) -> None:
        # Before an item is read, because its own parts can overlap as well.
        spans = self._items.spans(item)
        self._spans += spans
        self._bytes += sum(stop - start for start, stop in spans)
        if self._bytes > len(self._items.data):
            raise ImageUndecodable(_IN_COMMON)

    def _check_overlaps(self) -> None:
        # Items that share bytes would cost more than the size of the file suggests.
        spans = sorted(self._spans)
        if any(start < stop for (_, stop), (start, _) in pairwise(spans)):
            raise ImageUndecodable(_IN_COMMON)

    def _add_coded(self, size: Size) -> None:
        self._coded_pixels += size[0] * size[1]
        most = self._limits.max_pixels // self._weight * 5 // 4
        if self._coded_pixels > most:
            raise ImageTooManyPixels(
                f"the {self._brand.upper()} image's tiles have {self._coded_pixels / 1e6:.1f} "
                f"megapixels, the limit is {most / 1e6:.1f}"
            )

    def _add_slices(self, size: Size, n_slices: int) -> None:
        self._slice_pixels += size[0] * size[1] * n_slices
        if self._slice_pixels > self._limits.max_slice_pixels:
            raise ImageTooComplex(
                f"the picture's slices could hold {self._slice_pixels / 1e6:.0f} megapixels, "
                f"the limit is {self._limits.max_slice_pixels / 1e6:.0f}"
            )


def _check_declared(declared: Size, coded: Size) -> None:
    if declared != coded:
        raise ImageUndecodable("the file declares another size than its compressed data")


def _colour(items: Items, item: int) -> bytes:
    for kind, content in items.properties(item):
        if kind == b"colr" and content.left == _COLOUR_BYTES:
            colour = content.rest()
            if colour.startswith(b"nclx"):
                return colour
    return b""


def _alpha_of(items: Items, shown: int) -> int | None:
    found = [
        item
        for (kind, item), targets in items.references.items()
        if kind == b"auxl" and shown in targets and _is_alpha(items, item)
    ]
    if len(found) > 1:
        raise ImageUndecodable("the picture has more than one transparency")
    return found[0] if found else None


def _is_alpha(items: Items, item: int) -> bool:
    for kind, content in items.properties(item):
        if kind == b"auxC":
            content.version()
            name = content.take(min(content.left, _LONGEST_NAME))
            return name.partition(b"\0")[0] in _ALPHA
    return False


def _transforms(
    items: Items, item: int, size: Size
) -> tuple[tuple[int, int, int, int] | None, int]:
    # Returns the crop and the orientation that the properties ask for.
    crop, turns, mirrored = None, 0, False
    for kind, content in items.properties(item):
        if kind == b"clap":
            if crop or turns or mirrored:
                raise ImageUndecodable("the picture is cropped twice, or turned and then cropped")
            crop = _clean_aperture(content, size)
        elif kind == b"irot":  # quarter turns against the clock
            turn = content.number(1) & 3
            turns = (turns + (-turn if mirrored else turn)) % 4
        elif kind == b"imir":  # 1 exchanges left and right, 0 top and bottom
            if not content.number(1) & 1:
                turns = (turns + 2) % 4
            mirrored = not mirrored
    return crop, (_TURNED_AND_MIRRORED if mirrored else _TURNED)[turns]


def _clean_aperture(content: Fields, size: Size) -> tuple[int, int, int, int]:
    # ISO/IEC 14496-12, 12.1.4: width, height and the offset of the centre, each as a fraction.
    numbers = [content.number(4) for _ in range(8)]
    if 0 in numbers[1::2]:
        raise ImageUndecodable("the picture is cropped in an impossible way")
    (width, height, x, y) = zip(numbers[::2], numbers[1::2], strict=True)
    left, right = _clean_span(size[0], width, x)
    top, bottom = _clean_span(size[1], height, y)
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise ImageUndecodable("the picture is cropped to what it does not have")
    return left, top, right, bottom


def _clean_span(side: int, length: tuple[int, int], offset: tuple[int, int]) -> tuple[int, int]:
    # Parts of pixels are rounded down, as libheif does: (side - length) / 2 + offset.
    (n, d), (x, y) = length, offset
    start = ((side * d - n) * y + 2 * _signed(x) * d) // (2 * d * y)
    return start, start + n // d


def _signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number

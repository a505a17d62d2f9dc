"""HEIC and AVIF: good ones, and those that lie, repeat or share. The answers need the extra `heif`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from PIL import Image

from tests.contract.images.heif import FILES
from tests.contract.images.heif.builder import (
    ALPHA,
    Item,
    box,
    coded,
    coded_avif,
    grid_content,
    heif,
    ispe,
    item_of,
    number,
)
from tests.pictures import encode, exif_block, photo, picture

_TILE = (64, 64)


def _composed(kind: bytes, content: bytes, *targets: int) -> bytes:
    shown = Item(kind, content, (ispe(*_TILE),))
    return heif(item_of(coded()), shown, primary=2, references=[(b"dimg", 2, targets)])


def _grid(tile: Item, n: int, size: tuple[int, int], shared: bool = False) -> bytes:
    """Returns a grid of n x n tiles; if they share their bytes, the cost grows without the file."""
    copy = replace(tile, content=b"", shares=1) if shared else tile
    shown = Item(b"grid", grid_content(n, n, *size), (ispe(*size),))
    n_tiles = n * n
    references = [(b"dimg", n_tiles + 1, range(1, n_tiles + 1))]
    brand = b"avif" if tile.kind == b"av01" else b"heic"
    tiles = [tile, *[copy] * (n_tiles - 1)]
    return heif(*tiles, shown, primary=n_tiles + 1, references=references, brand=brand)


def _lying_avif() -> bytes:
    """Returns 64 x 64 declared pixels of 12 million."""
    data = encode(picture(size=(4000, 3000)), "AVIF", speed=10)
    return data.replace(ispe(4000, 3000), ispe(*_TILE))


def _avif_of_two_frames() -> bytes:
    part = coded_avif()
    header = 2 + part.data[1]  # a byte of kind, one of length
    twice = replace(part, data=part.data + part.data[header:])
    return heif(item_of(twice), brand=b"avif")


def _repeated(n: int) -> bytes:
    part = coded()
    return heif(item_of(replace(part, data=part.data * n)))


def _with_alpha() -> bytes:
    alpha = replace(item_of(coded(), ALPHA), content=b"", shares=1)
    return heif(item_of(coded()), alpha, references=[(b"auxl", 2, [1])])


HEIF: dict[str, Callable[[], bytes]] = {
    **{path.name.replace(".", "-"): path.read_bytes for path in sorted(FILES.iterdir())},
    "avif-plain": lambda: encode(photo(), "AVIF"),
    "avif-red": lambda: encode(picture(), "AVIF"),
    "avif-blue": lambda: encode(picture((0, 0, 255)), "AVIF"),
    "avif-grey": lambda: encode(photo(), "AVIF", subsampling="4:0:0"),
    "avif-444": lambda: encode(photo(), "AVIF", subsampling="4:4:4"),
    "avif-alpha": lambda: encode(Image.new("RGBA", (40, 30), (0, 0, 255, 60)), "AVIF"),
    "avif-odd-size": lambda: encode(photo((7, 13)), "AVIF"),
    "avif-1x1": lambda: encode(picture(size=(1, 1)), "AVIF"),
    "avif-101x1": lambda: encode(picture(size=(101, 1)), "AVIF"),
    "avif-turned": lambda: encode(photo(), "AVIF", exif=exif_block([(0x0112, 3, 1, 6)])),
    "avif-animated": lambda: encode(
        picture(), "AVIF", save_all=True, append_images=[picture((0, 0, 255))]
    ),
    "avif-12MP": lambda: encode(picture(size=(4000, 3000)), "AVIF", speed=10),
    "avif-17MP": lambda: encode(picture(size=(4250, 4000)), "AVIF", speed=10),
    "avif-grid": lambda: _grid(item_of(coded_avif()), 2, (128, 128)),
    "avif-cut": lambda: encode(photo(), "AVIF")[:-40],
    "avif-zeroed": lambda: encode(photo(), "AVIF")[:-80] + bytes(80),
    "avif-lying-size": _lying_avif,
    "avif-two-frames": _avif_of_two_frames,
    "heic-lying-size": lambda: heif(item_of(coded(), size=(8, 8))),
    "heic-cut": lambda: (FILES / "plain.heic").read_bytes()[:-40],
    "heic-zeroed": lambda: (FILES / "plain.heic").read_bytes()[:-80] + bytes(80),
    "heic-then-film": lambda: (FILES / "plain.heic").read_bytes() + box(b"mpvd", bytes(900)),
    "heic-overlay": lambda: _composed(b"iovl", bytes(64), 1, 1),
    "heic-identity": lambda: _composed(b"iden", b"", 1),
    "heic-grid-of-itself": lambda: _composed(b"grid", grid_content(1, 1, *_TILE), 2),
    "heic-grid-sharing-bytes": lambda: _grid(item_of(coded()), 16, (1024, 1024), shared=True),
    "heic-grid-too-small": lambda: _grid(item_of(coded()), 4, _TILE),
    "avif-grid-of-one-larger-tile": lambda: _grid(item_of(coded_avif((1200, 1100))), 1, _TILE),
    "heic-grid-256": lambda: _grid(item_of(coded()), 16, (1024, 1024)),
    "heic-grid-289": lambda: _grid(item_of(coded()), 17, (1088, 1088)),
    "heic-alpha-sharing-bytes": _with_alpha,
    "heic-pictures-in-item": lambda: _repeated(500),
    "heic-20000-items": lambda: heif(item_of(coded()), *[Item(b"Exif")] * 20_000),
    "heic-beyond-the-end": lambda: heif(replace(item_of(coded()), extent=(100, 1 << 30))),
    "heic-4000-times-the-same-bytes": lambda: heif(replace(item_of(coded()), n_extents=4_000)),
    "heic-encrypted": lambda: heif(replace(item_of(coded()), protected=True)),
    "heic-of-jpeg": lambda: heif(Item(b"jpeg", encode(photo(), "JPEG"), (ispe(64, 48),))),
    "heic-film": lambda: box(b"ftyp", b"hevc", bytes(4), b"msf1") + box(b"moov", bytes(99)),
    "heic-boxes-in-a-row": lambda: box(b"ftyp", b"heic", bytes(4), b"mif1") + box(b"free") * 9_000,
    "heic-crop-outside": lambda: heif(
        item_of(coded(), box(b"clap", *[number(n, 4) for n in (65, 1) * 4]))
    ),
}

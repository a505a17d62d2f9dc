"""HEIC and AVIF: good ones, and those that lie, repeat or share. The answers need the extra `heif`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from PIL import Image

from tests.contract.images.heif import FILES
from tests.contract.images.heif.builder import (
    ALPHA,
    Item,
    avif,
    avif_of_two_frames,
    box,
    coded,
    coded_avif,
    composed,
    grid,
    grid_content,
    heif,
    ispe,
    item_of,
    lying_avif,
    number,
    sharing,
    with_alpha,
)
from tests.pictures import encode, exif_block, photo, picture

_TILE = (64, 64)


def _grid(tile: Item, n: int, size: tuple[int, int]) -> bytes:
    return grid([tile] * (n * n), n, n, size)


def _grid_sharing_bytes(n: int) -> bytes:
    """Returns a grid whose cost would grow without the file."""
    tile = item_of(coded())
    return grid([tile, *[sharing(tile)] * (n * n - 1)], n, n, (64 * n, 64 * n))


def _repeated(n: int) -> bytes:
    part = coded()
    return heif(item_of(replace(part, data=part.data * n)))


def _needs_others() -> bytes:
    """Returns a HEIC whose picture is of a kind (CRA) that can name missing ones."""
    part = coded()
    kind = bytes([21 << 1])
    return heif(item_of(replace(part, data=part.data[:4] + kind + part.data[5:])))


def _crop_of_a_column() -> bytes:
    """Returns an AVIF that shows 1 x 3,000 pixels."""
    crop = box(b"clap", *(number(n, 4) for n in (1, 1, 3000, 1, 0, 1, 0, 1)))
    return avif(item_of(coded_avif((64, 3000)), crop))


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
    "avif-crop-of-a-column": _crop_of_a_column,
    "avif-cut": lambda: encode(photo(), "AVIF")[:-40],
    "avif-zeroed": lambda: encode(photo(), "AVIF")[:-80] + bytes(80),
    "avif-lying-size": lambda: lying_avif((4000, 3000)),
    "avif-two-frames": avif_of_two_frames,
    "heic-lying-size": lambda: heif(item_of(coded(), size=(8, 8))),
    "heic-cut": lambda: (FILES / "plain.heic").read_bytes()[:-40],
    "heic-zeroed": lambda: (FILES / "plain.heic").read_bytes()[:-80] + bytes(80),
    "heic-then-film": lambda: (FILES / "plain.heic").read_bytes() + box(b"mpvd", bytes(900)),
    "heic-overlay": lambda: composed(b"iovl", bytes(64), 1, 1),
    "heic-identity": lambda: composed(b"iden", b"", 1),
    "heic-grid-of-itself": lambda: composed(b"grid", grid_content(1, 1, *_TILE), 2),
    "heic-grid-sharing-bytes": lambda: _grid_sharing_bytes(16),
    "heic-grid-too-small": lambda: _grid(item_of(coded()), 4, _TILE),
    "avif-grid-of-one-larger-tile": lambda: _grid(item_of(coded_avif((1200, 1100))), 1, _TILE),
    "heic-grid-256": lambda: _grid(item_of(coded()), 16, (1024, 1024)),
    "heic-grid-289": lambda: _grid(item_of(coded()), 17, (1088, 1088)),
    "heic-alpha-sharing-bytes": lambda: with_alpha(
        item_of(coded()), sharing(item_of(coded(), ALPHA))
    ),
    "heic-needs-other-pictures": _needs_others,
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

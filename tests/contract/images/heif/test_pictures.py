"""Files that lie, share, repeat or compose: refused before a decoder starts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from contract.errors import (
    ImageError,
    ImageTooComplex,
    ImageTooManyPixels,
    ImageTruncated,
    ImageUndecodable,
    UnsupportedMediaType,
)
from contract.images.heif import (
    HeifLimits,
    HeifPicture,
    declared_size,
    items,
    read_picture,
    write_file,
)
from contract.images.heif.av1 import MAX_UNITS as MAX_AV1_UNITS
from contract.images.heif.hevc import MAX_UNITS as MAX_HEVC_UNITS
from contract.images.heif.items import MAX_ITEMS, Items
from contract.images.heif.pictures import MAX_TILES, Coded, Grid
from tests.contract.images.heif import FILES
from tests.contract.images.heif.builder import (
    ALPHA,
    WIDE,
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
    split_avif,
    with_alpha,
)

LIMITS = HeifLimits(25_000_000, 64_000_000)


def read(data: bytes, limits: HeifLimits = LIMITS, brand: str = "heic") -> HeifPicture:
    return read_picture(data, brand, limits)


def with_units(part: Coded, *units: bytes) -> Coded:
    """Returns the item with other units of HEVC, each with its length."""
    return replace(part, data=b"".join(number(len(unit), 4) + unit for unit in units))


def slice_of(part: Coded) -> bytes:
    return part.data[4:]


def sequence_set(part: Coded) -> bytes:
    """Returns the description of the size in the property of an item."""
    position = 23
    while part.config[position] & 0x3F != 33:
        position += 5 + int.from_bytes(part.config[position + 3 : position + 5], "big")
    length = int.from_bytes(part.config[position + 3 : position + 5], "big")
    return part.config[position + 5 : position + 5 + length]


# --- accepted -------------------------------------------------------------------------------------


def test_single_item_is_kept_as_it_is():
    part = coded()

    picture = read(heif(item_of(part)))

    assert (picture.colours, picture.alpha, picture.crop) == (part, None, None)
    assert picture.orientation == 1


def test_grid_keeps_its_tiles_in_order():
    small, large = coded(), coded("444.heic")
    data = grid([item_of(small), item_of(small)], 1, 2, (100, 64))

    colours = read(data).colours

    assert isinstance(colours, Grid)
    assert (colours.size, colours.columns, colours.tiles) == ((100, 64), 2, (small, small))
    mixed = grid([item_of(small), item_of(large)], 1, 2, (100, 64))
    with pytest.raises(ImageUndecodable, match="same way"):
        read(mixed)


def test_written_file_reads_as_the_same_picture():
    tile, alpha = coded(), coded("grey.heic")
    tiles = Grid((100, 100), 2, (tile,) * 4, b"nclx\0\1\0\1\0\1\x80")
    picture = HeifPicture(tiles, replace(tiles, tiles=(alpha,) * 4), True, None, 1)

    assert read(write_file(picture, "heic")) == picture


def test_other_items_are_never_read():
    # A thumbnail, EXIF and a film, all with impossible content.
    broken = Item(b"hvc1", b"x", (ispe(10**6, 10**6),))
    data = heif(item_of(coded()), broken, Item(b"Exif", b"x"), Item(b"iovl", b"x"))

    assert read(data + box(b"moov", b"x")).colours.size == (64, 64)


def test_repeated_parameter_sets_and_notes_are_dropped():
    part = coded()
    note, other_view = b"\x4e\x01note", b"\x28\x09" + slice_of(part)[2:]

    data = heif(item_of(with_units(part, sequence_set(part), note, slice_of(part), other_view)))

    assert read(data).colours == part


def test_declared_size_is_that_of_the_primary_item():
    assert declared_size(heif(Item(b"Exif"), item_of(coded()), primary=2)) == (64, 64)
    assert declared_size(heif(Item(b"hvc1"))) is None
    assert declared_size(b"\0\0\0\x10ftypheic" + bytes(50)) is None


# --- composed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [b"iovl", b"iden", b"tmap", b"jpeg", b"av01", b"mski", b"unci"])
def test_other_ways_to_compose_or_code_are_not_accepted(kind):
    with pytest.raises(UnsupportedMediaType, match="convert it to JPEG"):
        read(composed(kind, bytes(40), 1))


def test_grid_of_grids_is_not_accepted():
    inner = Item(b"grid", grid_content(1, 1, 64, 64), (ispe(64, 64),))
    data = heif(
        item_of(coded()), inner, inner, primary=3, references=[(b"dimg", 2, [1]), (b"dimg", 3, [2])]
    )

    with pytest.raises(UnsupportedMediaType):
        read(data)


def test_grid_of_itself_is_not_accepted():
    with pytest.raises(UnsupportedMediaType):
        read(composed(b"grid", grid_content(1, 1, 64, 64), 2))


def test_grid_that_shows_a_tile_twice_is_refused():
    shown = Item(b"grid", grid_content(1, 2, 128, 64), (ispe(128, 64),))

    with pytest.raises(ImageUndecodable, match="twice"):
        read(heif(item_of(coded()), shown, primary=2, references=[(b"dimg", 2, [1, 1])]))


def test_tiles_that_share_their_bytes_are_refused():
    tile = item_of(coded())
    data = grid([tile, sharing(tile)], 1, 2, (128, 64))

    with pytest.raises(ImageUndecodable, match="in common"):
        read(data)


@pytest.mark.parametrize(("n", "error"), [(4_000, ImageUndecodable), (4_001, ImageTooComplex)])
def test_item_that_lists_its_bytes_again_is_refused_before_it_is_read(monkeypatch, n, error):
    # 4,000 times 20 MB would be 80 GB.
    data = heif(replace(item_of(coded()), n_extents=n))
    monkeypatch.setattr(Items, "content", lambda *_: pytest.fail("it was read"))

    with pytest.raises(error):
        read(data)


def test_item_that_lists_its_bytes_twice_is_refused():
    with pytest.raises(ImageUndecodable):
        read(heif(replace(item_of(coded()), n_extents=2)))


def test_long_properties_are_not_copied_for_every_item():
    part = coded()
    long = replace(part, config=part.config + bytes(1 << 18))

    with pytest.raises(ImageTooComplex, match="parameter sets"):
        read(heif(item_of(long)))


def test_alpha_that_shares_its_bytes_is_refused():
    part = coded()

    with pytest.raises(ImageUndecodable, match="in common"):
        read(with_alpha(item_of(part), sharing(item_of(part, ALPHA))))


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((64, 64), 1, 2), ((129, 64), 1, 2), ((128, 65), 1, 2), ((1, 1), 2, 1)],
    ids=["too-many", "too-few", "too-low", "one-pixel"],
)
def test_grid_of_more_or_less_than_it_needs_is_refused(size, rows, columns):
    data = grid([item_of(coded())] * 2, rows, columns, size)

    with pytest.raises(ImageUndecodable, match="larger or smaller"):
        read(data)


def test_tile_far_larger_than_its_picture_is_refused():
    def shows(side: int) -> bytes:
        return grid([item_of(coded_avif((64, side)))], 1, 1, (64, 64))

    assert read(shows(64 + 1024), brand="avif").colours.size == (64, 64)
    with pytest.raises(ImageUndecodable, match="larger or smaller"):
        read(shows(64 + 1025), brand="avif")


def test_coded_pixels_are_limited():
    # 65 x 65 pixels of 4 tiles of 64 x 64.
    data = grid([item_of(coded())] * 4, 2, 2, (65, 65))

    assert read(data, HeifLimits(4 * 64 * 64 * 4 // 5 + 1, 10**9)).colours.size == (65, 65)
    with pytest.raises(ImageTooManyPixels, match="tiles"):
        read(data, HeifLimits(4 * 64 * 64 * 4 // 5 - 1, 10**9))


def test_tiles_are_counted():
    data = grid([item_of(coded())] * 272, 17, 16, (1024, 1088))
    with pytest.raises(ImageTooComplex, match=f"272 tiles, the limit is {MAX_TILES}"):
        read(data)
    data = grid([item_of(coded())] * 256, 16, 16, (1024, 1024))
    assert read(data).colours.size == (1024, 1024)


def test_grid_with_other_numbers_than_the_rest_is_refused():
    shown = Item(b"grid", grid_content(1, 2, 128, 64), (ispe(120, 64),))
    tiles = [item_of(coded())] * 2

    with pytest.raises(ImageUndecodable, match="contradicts"):
        read(heif(*tiles, shown, primary=3, references=[(b"dimg", 3, [1, 2])]))
    with pytest.raises(ImageUndecodable, match="contradicts"):
        read(heif(*tiles, replace(shown, properties=(ispe(128, 64),)), primary=3))


def test_turned_tile_is_not_accepted():
    tiles = [item_of(coded()), item_of(coded(), box(b"irot", b"\1"))]
    data = grid(tiles, 1, 2, (128, 64))

    with pytest.raises(UnsupportedMediaType, match="turned"):
        read(data)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [(32, 32), (64, 63), (8000, 8000)], ids=str)
def test_declared_size_must_be_that_of_the_compressed_data(declared):
    with pytest.raises((ImageUndecodable, ImageTooManyPixels)):
        read(heif(item_of(coded(), size=declared)))
    with pytest.raises((ImageUndecodable, ImageTooManyPixels)):
        read(avif(item_of(coded_avif(), size=declared)), brand="avif")


def test_tile_that_is_larger_than_declared_is_refused():
    # 16 kB of it kept a decoder busy for 12 s.
    tile = item_of(coded_avif((640, 640)), size=(64, 64))
    data = grid([tile] * 4, 2, 2, (128, 128))

    with pytest.raises(ImageUndecodable, match="another size"):
        read(data, brand="avif")


def test_small_picture_of_large_compressed_data_is_refused():
    # 1.7 kB that declare 64 x 64 pixels made a decoder allocate 96 million.
    with pytest.raises(ImageUndecodable, match="another size"):
        read(lying_avif((1200, 800)), brand="avif")


def test_second_sequence_set_in_the_item_is_refused():
    part = coded()
    other = bytearray(sequence_set(part))
    other[-1] ^= 4

    with pytest.raises(ImageUndecodable, match="differently"):
        read(heif(item_of(with_units(part, bytes(other), slice_of(part)))))


def test_second_sequence_set_in_the_property_is_refused():
    part = coded()
    sets = box(b"", sequence_set(part))[4:]
    more = part.config[:22] + bytes([part.config[22] + 1]) + part.config[23:]
    more += b"\xa1\0\1" + number(len(sets), 2) + sets

    with pytest.raises(ImageUndecodable, match="one description"):
        read(heif(item_of(replace(part, config=more))))


def test_second_sequence_header_of_avif_is_refused():
    part = coded_avif()
    header, _ = split_avif(part)
    other = header[:-1] + bytes([header[-1] ^ 4])

    with pytest.raises(ImageUndecodable, match="differently"):
        read(avif(item_of(replace(part, data=header + other))), brand="avif")
    same = replace(part, data=header + part.data)
    assert read(avif(item_of(same)), brand="avif").colours == part


def test_padding_that_hides_a_large_picture_is_refused():
    # The sequence set of 64 x 64 pixels with a crop of 0 x 0; here with 64 x 64 of 8192 x 8192.
    part = coded()
    bits = "".join(f"{byte:08b}" for byte in sequence_set(part)[2:].replace(b"\0\0\3", b"\0\0"))
    old = "0000001000001" * 2 + "0"  # 64, 64, no crop
    crop = "".join(f"{n + 1:025b}" if n else "1" for n in (0, 4064, 0, 4064))
    side = f"{8193:027b}"
    assert bits.count(old) == 1
    bits = bits.replace(old, side * 2 + "1" + crop)
    raw = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    hidden = sequence_set(part)[:2] + raw.replace(b"\0\0", b"\0\0\3")
    config = part.config.replace(
        number(len(sequence_set(part)), 2) + sequence_set(part), number(len(hidden), 2) + hidden
    )

    with pytest.raises(ImageUndecodable, match="coded than shown"):
        read(heif(item_of(replace(part, config=config))))


# --- cost -----------------------------------------------------------------------------------------


def test_item_of_two_pictures_is_refused():
    part = coded()

    with pytest.raises(ImageUndecodable, match="exactly one picture"):
        read(heif(item_of(with_units(part, slice_of(part), slice_of(part)))))


@pytest.mark.parametrize("kind", [1, 16, 18, 21], ids=["film", "bla", "bla-n-lp", "cra"])
def test_item_that_needs_other_pictures_is_refused(kind):
    # 14 kB of a CRA picture that named 15 missing ones took 614 MB instead of 157.
    part = coded()
    moving = bytes([kind << 1, 1]) + slice_of(part)[2:]

    with pytest.raises(ImageUndecodable, match="other pictures"):
        read(heif(item_of(with_units(part, moving))))


def test_parameter_set_without_a_layer_is_refused():
    # A decoder would remove the 3 of 42 00 00 03, and read all that follows one byte earlier.
    part, sps = coded(), sequence_set(coded())
    shifted = bytes([sps[0], 0, 0, 3]) + sps[4:]

    with pytest.raises(ImageUndecodable, match="malformed"):
        read(heif(item_of(replace(part, config=part.config.replace(sps, shifted)))))


def test_slices_times_pixels_are_limited():
    part = coded()
    first = slice_of(part)
    later = first[:2] + bytes([first[2] & 0x7F]) + first[3:]
    data = heif(item_of(with_units(part, first, *[later] * 9)))

    assert read(data, HeifLimits(10**6, 10 * 64 * 64)).colours.size == (64, 64)
    with pytest.raises(ImageTooComplex, match="slices"):
        read(data, HeifLimits(10**6, 10 * 64 * 64 - 1))


def test_units_are_counted():
    hevc, av1 = coded(), coded_avif()
    note, padding = b"\x4e\x01note", b"\x7a\0"

    with pytest.raises(ImageTooComplex, match="units"):
        read(heif(item_of(with_units(hevc, *[note] * MAX_HEVC_UNITS, slice_of(hevc)))))
    padded = replace(av1, data=padding * MAX_AV1_UNITS + av1.data)
    with pytest.raises(ImageTooComplex, match="units"):
        read(avif(item_of(padded)), brand="avif")


def test_avif_of_several_frames_is_not_accepted():
    with pytest.raises(UnsupportedMediaType, match="layers or frames"):
        read(avif_of_two_frames(), brand="avif")


def test_bytes_are_counted(monkeypatch):
    data = heif(item_of(coded()))
    monkeypatch.setattr(items, "MAX_BYTES", len(data))

    assert read(data).colours.size == (64, 64)
    with pytest.raises(ImageTooComplex, match="bytes"):
        read(data + b"\0")


@pytest.mark.parametrize("n", [MAX_ITEMS + 1, 20_000], ids=["one-more", "thousands"])
def test_items_are_counted(n):
    with pytest.raises(ImageTooComplex):
        read(heif(item_of(coded()), *[Item(b"Exif")] * n))


def test_transparency_counts_as_pixels():
    part = coded()
    data = with_alpha(item_of(part), item_of(part, ALPHA))

    assert read(data, HeifLimits(2 * 64 * 64, 10**6)).alpha == part
    with pytest.raises(ImageTooManyPixels):
        read(data, HeifLimits(2 * 64 * 64 - 1, 10**6))


# --- contradictions -------------------------------------------------------------------------------


def test_transparency_of_another_size_is_refused():
    colours, alpha = coded_avif(), coded_avif((32, 64))
    data = with_alpha(item_of(colours), item_of(alpha, ALPHA))

    with pytest.raises(ImageUndecodable, match="another size"):
        read(data, brand="avif")


def test_second_transparency_is_refused():
    alphas = [item_of(coded(), ALPHA)] * 2

    with pytest.raises(ImageUndecodable, match="more than one"):
        read(with_alpha(item_of(coded()), *alphas))


def test_depth_or_gain_map_is_no_transparency():
    depth = box(b"auxC", bytes(4), b"urn:mpeg:hevc:2015:auxid:2\0")

    assert read(with_alpha(item_of(coded()), item_of(coded(), depth))).alpha is None


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"extent": (100, 10**6)}, ImageTruncated),
        ({"extent": (0xFFFFFFFF, 10)}, ImageTruncated),
        ({"extent": (100, 0)}, ImageUndecodable),
        ({"method": 1}, ImageUndecodable),
        ({"method": 2}, ImageUndecodable),
        ({"protected": True}, UnsupportedMediaType),
        ({"content": b""}, ImageUndecodable),
        ({"content": bytes(100)}, ImageUndecodable),
    ],
    ids=["beyond", "far-beyond", "empty", "no-idat", "in-item", "encrypted", "nothing", "zeros"],
)
def test_item_that_is_not_there_is_refused(change, error):
    with pytest.raises(error):
        read(heif(replace(item_of(coded()), **change)))


@pytest.mark.parametrize(
    "properties",
    [
        lambda item: item.properties[:1],
        lambda item: item.properties[1:],
        lambda item: (*item.properties, ispe(64, 65)),
        lambda item: (*item.properties, box(b"hvcC", b"x")),
        lambda item: (*item.properties, box(b"clap", bytes(32))),
        lambda item: (*item.properties, box(b"clap", *[number(n, 4) for n in (65, 1) * 4])),
        lambda item: (
            *item.properties,
            box(b"irot", b"\1"),
            box(b"clap", *[number(n, 4) for n in (8, 1) * 4]),
        ),
    ],
    ids=[
        "no-size",
        "no-config",
        "two-sizes",
        "two-configs",
        "crop-by-zero",
        "crop-outside",
        "crop-after-rotation",
    ],
)
def test_missing_or_contradictory_properties_are_refused(properties):
    item = item_of(coded())

    with pytest.raises(ImageUndecodable):
        read(heif(replace(item, properties=properties(item))))


@pytest.mark.parametrize(
    ("width", "offset", "expected"),
    [
        ((20, 1), (0, 1), (22, 42)),
        ((21, 1), (0, 1), (21, 42)),
        ((21, 1), (1, 2), (22, 43)),
        ((23, 1), (0, 1), (20, 43)),
        ((23, 1), (-1, 1), (19, 42)),
        ((41, 2), (0, 1), (21, 41)),
        ((64, 1), (0, 1), (0, 64)),
    ],
    ids=["even", "half", "half-moved", "odd-half", "half-left", "part-of-a-pixel", "all"],
)
def test_crop_is_rounded_down(width, offset, expected):
    # As libheif does; a crop should need no rounding.
    numbers = [*width, 64, 1, offset[0] % (1 << 32), offset[1], 0, 1]

    picture = read(heif(item_of(coded(), box(b"clap", *(number(n, 4) for n in numbers)))))

    assert picture.crop == (expected[0], 0, expected[1], 64)


def test_film_without_a_still_picture_is_refused():
    data = box(b"ftyp", b"hevc", bytes(4), b"msf1") + box(b"moov", bytes(8)) + box(b"mdat")

    with pytest.raises(ImageUndecodable, match="no still picture"):
        read(data)


@pytest.mark.parametrize("name", ["plain.heic", "grid.heic", "alpha.heic", "10-bit.avif"])
def test_file_cut_at_any_byte_is_refused(name):
    data = (FILES / name).read_bytes()
    brand = name[-4:]
    codes = set()

    for stop in range(len(data)):
        with pytest.raises(ImageError) as caught:
            read(data[:stop], WIDE, brand)
        codes.add(caught.value.code)

    assert codes == {"image_truncated", "image_undecodable"}


@pytest.mark.parametrize("name", ["plain.heic", "grid.heic", "alpha.heic", "10-bit.avif"])
def test_file_with_any_byte_of_its_description_changed_stays_within_its_limits(name):
    data = (FILES / name).read_bytes()
    brand = name[-4:]
    limits = HeifLimits(400 * 400, 400 * 400)

    for at in range(data.index(b"meta"), data.index(b"mdat")):
        for value in (0, 0xFF, data[at] ^ 1, data[at] ^ 0x80):
            changed = data[:at] + bytes([value]) + data[at + 1 :]
            try:
                picture = read(changed, limits, brand)
            except ImageError:
                continue
            width, height = picture.colours.size
            assert width * height <= limits.max_pixels
            assert read(write_file(picture, brand), limits, brand).colours == picture.colours

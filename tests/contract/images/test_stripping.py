import pytest

from contract.errors import ImageTooComplex
from contract.images.decoding import decode
from contract.images.headers import read_jpeg
from contract.images.stripping import png_has_all_rows, strip_gif, strip_jpeg, strip_png
from tests import pictures
from tests.pictures import HOSTILE

MARKER = b"marker-4711"
MARKED = {
    "jpeg-comment": pictures.jpeg_with(pictures.jpeg_segment(0xFE, MARKER)),
    "jpeg-profile": pictures.jpeg_with(pictures.jpeg_segment(0xE2, b"ICC_PROFILE\0" + MARKER)),
    "jpeg-junk": pictures.jpeg_with(pictures.jpeg_segment(0xFE, b""), MARKER),
    "png-text": pictures.small_png((b"tEXt", MARKER)),
    "png-late-text": pictures.small_png(after=[(b"tEXt", MARKER)]),
    "png-tail": pictures.small_png() + MARKER,
    "gif-comment": pictures.gif_of(b"!\xfe\x0b" + MARKER + b"\0", pictures.gif_frame(), b";"),
}


def stripped_jpeg(data):
    return strip_jpeg(data, read_jpeg(data, lambda _: None))


STRIP = {"jpeg": stripped_jpeg, "png": strip_png, "gif": strip_gif}


@pytest.mark.parametrize("name", MARKED)
def test_strip_drops_everything_but_pixels(name):
    stripped = STRIP[name.split("-")[0]](MARKED[name])

    assert MARKER in MARKED[name]
    assert MARKER not in stripped.data


@pytest.mark.parametrize("name", STRIP)
def test_strip_twice_equals_once(name):
    once = STRIP[name](pictures.of_format(name, pictures.photo())).data

    assert STRIP[name](once).data == once


def test_strip_jpeg_returns_the_first_exif_block():
    first, second = (pictures.exif_block([(0x0112, 3, 1, value)]) for value in (6, 3))
    segments = [pictures.jpeg_segment(0xE1, block) for block in (b"http://xmp", first, second)]

    stripped = stripped_jpeg(pictures.jpeg_with(*segments))

    assert stripped.exif == first
    assert b"Exif" not in stripped.data


def test_strip_png_returns_the_exif_block_at_any_position():
    block = pictures.exif_block([(0x0112, 3, 1, 6)])[6:]

    assert strip_png(pictures.small_png((b"eXIf", block))).exif == block
    assert strip_png(pictures.small_png(after=[(b"eXIf", block)])).exif == block


def test_strip_png_keeps_palette_transparency_and_pixels():
    data = pictures.MODES["png-P-tRNS-alphas"]()

    assert strip_png(data).data == data


def test_strip_gif_keeps_the_transparent_colour():
    control = b"!\xf9\4\1\0\0\1\0"
    data = pictures.gif_of(control, b"!\xfe\1x\0", pictures.gif_frame(), b";")

    assert strip_gif(data).data == pictures.gif_of(control, pictures.gif_frame(), b";")
    assert decode(data).getpixel((1, 0)) == (255, 255, 255)


def test_strip_gif_odd_graphic_control_is_dropped():
    data = pictures.gif_of(b"!\xf9\1\1\0", pictures.gif_frame(), b";")

    assert strip_gif(data).data == pictures.gif_of(pictures.gif_frame(), b";")


def test_strip_gif_enlarges_the_screen_to_the_first_frame():
    data = pictures.gif_of(pictures.gif_frame(40, 30), b";")

    assert strip_gif(data).data[6:10] == b"\x2a\0\x20\0"


def test_strip_jpeg_with_nothing_to_drop_is_the_same_object():
    data = pictures.jpeg()

    assert stripped_jpeg(data).data is data


def test_strip_keeps_the_last_allowed_chunk():
    with pytest.raises(ImageTooComplex, match="100,000 chunks"):
        strip_png(HOSTILE["png-200000-chunks"].data)


def test_png_has_all_rows_of_a_whole_picture():
    assert png_has_all_rows(pictures.small_png())


@pytest.mark.parametrize(
    "name", ["png-lost-rows", "png-lost-all-rows", "png-not-zlib", "png-no-data"]
)
def test_png_has_all_rows_of_a_broken_picture_is_false(name):
    assert not png_has_all_rows(HOSTILE[name].data)

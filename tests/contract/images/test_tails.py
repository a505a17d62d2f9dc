"""Files that end early, or in something that is not theirs: buffers, cameras, phones, downloads."""

import struct

import numpy as np
import pytest
from PIL import Image

from contract.errors import ImageError, ImageTruncated
from contract.images import decode, decode_reduced, inspect
from contract.images.stripping import webp_without_last_zeros
from tests import pictures

PHOTO = pictures.photo((320, 240))
KINDS = {
    "baseline": lambda image: pictures.jpeg(image),
    "optimized": lambda image: pictures.jpeg(image, optimize=True),
    "restarts": lambda image: pictures.jpeg(image, restart_marker_rows=1),
    "progressive": lambda image: pictures.jpeg(image, progressive=True),
    "grey": lambda image: pictures.jpeg(image.convert("L")),
    "cmyk": lambda image: pictures.jpeg(image.convert("CMYK")),
}
JPEG, CUTS = pytest.mark.parametrize("kind", KINDS), (10, 20, 50, 90, 99)
END = b"\xff\xd9"


def reduced(data):
    return decode_reduced(inspect(data), 100)


both_ways = pytest.mark.parametrize("read", [decode, reduced], ids=["decode", "decode_reduced"])


def pixels(decoded):
    return np.asarray(decoded if isinstance(decoded, Image.Image) else decoded.pixels)


def flat_bottom(size=(320, 240), colour=(128, 128, 128)):
    image = pictures.photo(size)
    image.paste(colour, (0, size[1] // 4, *size))
    return image


@both_ways
@JPEG
@pytest.mark.parametrize("percent", CUTS)
def test_cut_jpeg_in_a_zeroed_buffer_is_truncated(kind, percent, read):
    data = KINDS[kind](PHOTO)

    with pytest.raises(ImageTruncated):
        read(pictures.cut(data, percent) + bytes(65_536))


@both_ways
@JPEG
@pytest.mark.parametrize(
    "tail", [bytes(65_536), b"trailing junk", END], ids=["zeros", "junk", "end-marker"]
)
def test_whole_jpeg_passes_whatever_follows_it(kind, tail, read):
    data = KINDS[kind](PHOTO)

    assert np.array_equal(pixels(read(data + tail)), pixels(read(data)))


@both_ways
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "progressive"])
@pytest.mark.parametrize(
    "tail", [b"", b"\0", bytes(65_536), pictures.jpeg()], ids=["end", "zero", "zeros", "jpeg"]
)
def test_whole_jpeg_of_one_scan_needs_no_end_marker(kind, tail, read):
    data = KINDS[kind](PHOTO)

    assert np.array_equal(pixels(read(data.removesuffix(END) + tail)), pixels(read(data)))


@both_ways
@pytest.mark.parametrize("kind", ["baseline", "progressive"])
def test_jpeg_with_a_gain_map_behind_it_is_the_main_picture(kind, read):
    # Ultra HDR and motion photos: a second picture or a video follows the first end marker.
    data = KINDS[kind](PHOTO)
    gain_map = pictures.jpeg(pictures.photo((80, 60), seed=3).convert("L"))

    read(data + gain_map)
    read(data + b"\0\0\0\x18ftypmp42" + bytes(500))

    assert decode(data + gain_map).tobytes() == decode(data).tobytes()


@both_ways
def test_cut_jpeg_before_another_picture_is_truncated(read):
    data = pictures.cut(pictures.jpeg(PHOTO), 50) + bytes(4096) + pictures.jpeg()

    with pytest.raises(ImageError):
        read(data)


@both_ways
@pytest.mark.parametrize("kind", ["baseline", "optimized", "restarts", "grey", "cmyk"])
@pytest.mark.parametrize("percent", [20, 50, 80])
def test_cut_jpeg_that_got_an_end_marker_is_truncated(kind, percent, read):
    data = pictures.cut(KINDS[kind](PHOTO), percent) + END

    with pytest.raises(ImageTruncated, match="fewer rows"):
        read(data)


@both_ways
@JPEG
def test_jpeg_with_grey_rows_at_its_end_is_accepted(kind, read):
    data = KINDS[kind](flat_bottom())

    assert pixels(read(data)).any()
    if kind != "progressive":
        assert pixels(read(data.removesuffix(END) + bytes(1000))).any()


@both_ways
def test_jpeg_with_fewer_rows_than_declared_is_truncated(read):
    data = bytearray(pictures.jpeg(PHOTO))
    struct.pack_into(">H", data, data.index(b"\xff\xc0") + 5, 480)

    with pytest.raises(ImageTruncated):
        read(bytes(data))


@both_ways
@pytest.mark.parametrize("percent", CUTS)
@pytest.mark.parametrize("options", [{}, {"lossless": True}], ids=["lossy", "lossless"])
def test_webp_with_a_zeroed_rest_is_truncated(options, percent, read):
    data = pictures.webp(pictures.photo((640, 480)), **options)

    kept = pictures.cut(data, percent)

    with pytest.raises(ImageTruncated):
        read(kept + bytes(len(data) - len(kept)))


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (128, 128, 128)])
@pytest.mark.parametrize(
    "options", [{"quality": 100}, {"lossless": True, "quality": 0, "method": 0}]
)
def test_webp_with_a_flat_end_is_accepted(colour, options):
    # Such pictures can really end in kilobytes of zeros.
    for image in (pictures.picture(colour, (640, 480)), flat_bottom((640, 480), colour)):
        assert decode(pictures.webp(image, **options)).size == (640, 480)


def test_webp_that_really_ends_in_zeros_is_among_the_accepted_ones():
    flat = pictures.picture((128, 128, 128), (640, 480))

    assert webp_without_last_zeros(pictures.webp(flat, quality=100))


def test_webp_without_last_zeros_of_usual_files_is_none():
    for data in (pictures.webp(PHOTO), pictures.riff((b"ALPH", b"")), b"RIFF"):
        assert webp_without_last_zeros(data) is None


@pytest.mark.parametrize("percent", [40, 80])
def test_webp_animation_is_truncated_only_in_its_first_frame(percent):
    data = pictures.encode(
        PHOTO, "WEBP", save_all=True, append_images=[pictures.photo((320, 240), 1)], lossless=True
    )
    kept = pictures.cut(data, percent)
    zeroed = kept + bytes(len(data) - len(kept))

    if percent == 80:
        assert decode(zeroed).tobytes() == decode(data).tobytes()
    else:
        with pytest.raises(ImageError):
            decode(zeroed)


@pytest.mark.parametrize("percent", [20, 50, 80, 95])
@pytest.mark.parametrize("size", [(64, 48), (320, 240)])
def test_png_with_a_zeroed_rest_is_no_picture(size, percent):
    # Pillow compares no checksums: zeros as codes gave wrong pixels, and no error.
    data = pictures.png(pictures.photo(size))
    kept = pictures.cut(data, percent)

    with pytest.raises(ImageError):
        decode(kept + bytes(len(data) - len(kept)))


@pytest.mark.parametrize("tail", [b"", bytes(5000)])
def test_png_without_its_last_chunk_is_accepted(tail):
    data = pictures.png(PHOTO)

    assert decode(data[:-12] + tail).tobytes() == PHOTO.tobytes()


@pytest.mark.parametrize("percent", [20, 50, 80, 95])
def test_gif_with_a_zeroed_rest_is_no_picture(percent):
    data = pictures.gif(PHOTO.quantize(64))
    kept = pictures.cut(data, percent)

    with pytest.raises(ImageError):
        decode(kept + bytes(len(data) - len(kept)))


def test_bmp_whose_buffer_is_longer_is_accepted():
    # The rest of a cut BMP cannot be told from black pixels. Its length can.
    data = pictures.bmp(PHOTO)

    assert decode(data + bytes(5000)).tobytes() == PHOTO.tobytes()
    with pytest.raises(ImageTruncated):
        decode(data[:-100])


# --- alpha that was never written -----------------------------------------------------------------


def bmp_32_bit(alpha: int, header: int = 124, compression: int = 3) -> bytes:
    """Returns a red and blue 2 x 1 BMP of 32 bits a pixel."""
    info = struct.pack("<IiiHHIIiiII", header, 2, 1, 1, 32, compression, 8, 0, 0, 0, 0)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) if header > 40 else b""
    info = (info + masks).ljust(header, b"\0")
    start = struct.pack("<IHHI", 14 + header + 8, 0, 0, 14 + header)
    return b"BM" + start + info + bytes((0, 0, 255, alpha, 255, 0, 0, 0))


@both_ways
@pytest.mark.parametrize(
    ("header", "compression"), [(124, 3), (108, 3), (56, 3), (124, 0), (40, 0)]
)
def test_bmp_with_alpha_of_zeros_is_opaque(header, compression, read):
    decoded = read(bmp_32_bit(0, header, compression))

    assert pixels(decoded).tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_bmp_with_some_alpha_is_composed_over_white():
    assert np.asarray(decode(bmp_32_bit(255))).tolist() == [[[255, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("encode", [pictures.png, pictures.webp])
def test_alpha_of_zeros_in_other_formats_is_transparent(encode):
    clear = Image.new("RGBA", (16, 16), (*pictures.RED, 0))

    assert decode(encode(clear, lossless=True)).getpixel((3, 3)) == (255, 255, 255)

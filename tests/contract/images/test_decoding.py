import hashlib
import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from contract.errors import (
    ImageBadDimensions,
    ImageError,
    ImageTooComplex,
    ImageTooManyPixels,
    ImageTruncated,
    ImageUndecodable,
    UnsupportedMediaType,
)
from contract.images import DECODERS, ImageLimits, decode, decode_reduced, headers, inspect, sniff
from contract.images.colours import BACKGROUND
from contract.images.heif.decoders import OPENERS
from tests import pictures
from tests.pictures import ACCEPTED, FORMATS, HOSTILE, MODES, ORIENTATIONS, RED

CUTS = range(5, 100, 5)


def outcome(data: bytes) -> str:
    """Returns the error code, or `ACCEPTED` for a loaded RGB picture."""
    try:
        image = decode(data)
    except ImageError as error:
        return error.code
    assert image.mode == "RGB"
    assert image.getpixel((image.width - 1, image.height - 1)) is not None
    return ACCEPTED


@pytest.fixture
def no_decoder(monkeypatch):
    """Makes the test fail if Pillow opens anything."""

    def refuse(*_args, **_kwargs):
        pytest.fail("the file reached a decoder")

    monkeypatch.setattr(Image, "open", refuse)


# --- valid files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_decode_every_format_gives_rgb_of_the_stored_size(name):
    image = decode(pictures.of_format(name))

    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 3


@pytest.mark.parametrize("name", FORMATS)
def test_sniff_recognises_every_format(name):
    assert sniff(pictures.of_format(name)).name == name


def test_decoders_have_unique_names_and_media_types():
    names = tuple(decoder.name for decoder in DECODERS)
    assert names[: len(FORMATS)] == FORMATS
    assert names[len(FORMATS) :] == tuple(OPENERS)
    assert len({decoder.media_type for decoder in DECODERS}) == len(DECODERS)


@pytest.mark.parametrize("name", FORMATS)
def test_inspect_finds_the_same_size_as_pillow(name):
    data = pictures.of_format(name, pictures.photo((37, 21)))

    file = inspect(data)

    assert file.data is data
    assert (file.header.size, file.header.declared_pixels) == ((37, 21), 37 * 21)


def test_inspect_of_a_cut_header_declares_no_pixels():
    assert inspect(pictures.jpeg()[:100]).header.declared_pixels == 0


@pytest.mark.parametrize("name", FORMATS)
def test_inspect_refuses_a_size_beyond_its_limits(name):
    data = pictures.of_format(name, pictures.photo((37, 21)))

    with pytest.raises(ImageTooManyPixels):
        inspect(data, ImageLimits(max_pixels=37 * 21 - 1))
    with pytest.raises(ImageBadDimensions):
        inspect(data, ImageLimits(min_side_px=22))


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize(
    "read",
    [decode, lambda data: decode_reduced(inspect(data), 16)],
    ids=["decode", "decode_reduced"],
)
def test_jpeg_with_its_frame_after_a_scan_is_checked_for_size(read):
    scan = pictures.jpeg_segment(0xDA, b"")
    data = b"\xff\xd8" + scan + pictures.jpeg_header(10_000, 10_000)[2:]

    assert inspect(data).header.size is None  # which stops at the scan
    with pytest.raises(ImageTooManyPixels):
        read(data)


def test_inspected_jpeg_is_decoded_without_reading_its_header_again(monkeypatch):
    file = inspect(pictures.jpeg())

    monkeypatch.setattr(headers, "jpeg_segments", lambda _: pytest.fail("a second walk"))

    assert decode_reduced(file, 16).size == (64, 48)


def test_decode_multi_picture_jpeg_gives_the_first_picture():
    image = decode(pictures.mpo())

    expected = decode(pictures.encode(pictures.photo(), "JPEG"))
    assert np.array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP"])
def test_decode_animation_gives_the_first_frame(format_name):
    others = [pictures.picture((0, 0, 255))]

    image = decode(pictures.encode(RED, format_name, save_all=True, append_images=others))

    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 4


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("format_name", ["PNG", "WEBP"])
def test_decode_orientation_is_undone_exactly(orientation, format_name):
    upright = pictures.photo()

    image = decode(pictures.oriented(upright, orientation, format_name))

    assert np.array_equal(np.asarray(image), np.asarray(upright))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_decode_jpeg_orientation_is_undone(orientation):
    upright = pictures.photo()

    image = decode(pictures.oriented(upright, orientation))

    assert image.size == upright.size
    assert np.abs(np.asarray(image).astype(int) - np.asarray(upright)).mean() < 3


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_decode_orientation_agrees_with_pillow(orientation):
    data = pictures.oriented(pictures.photo(), orientation)

    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(expected))


# --- colours --------------------------------------------------------------------------------------

# Lossless files give exactly these pixels everywhere. JPEG rounding depends on the library version.
GOLDEN = {
    "png-1": "c1bba4c36f3c0ecd",
    "png-L": "203bbea42954461d",
    "png-L-tRNS": "957c268847a2e4d4",
    "png-1-tRNS": "069af124b2f3cf01",
    "png-LA": "97c8f0bf16a30d3d",
    "png-P": "6f68fe108426a548",
    "png-P-tRNS-index": "878b81b6eff7167f",
    "png-P-tRNS-alphas": "9764cd3895a32e9a",
    "png-RGB": "3d0cbf70d818e173",
    "png-RGB-tRNS": "db7592e0739645d3",
    "png-RGBA": "29583cf866cd9ffc",
    "png-I;16": "72432263dbfe17ab",
    "png-I;16-tRNS": "bca69982eb5bd4c2",
    "png-RGB-48": "3f56841bd482c431",
    "png-interlaced": "ed9b1eddba86f1ef",
    "webp-lossless-RGB": "3d0cbf70d818e173",
    "webp-lossless-RGBA": "29583cf866cd9ffc",
    "gif-P": "203bbea42954461d",
    "gif-transparent": "957c268847a2e4d4",
    "bmp-1": "c1bba4c36f3c0ecd",
    "bmp-L": "203bbea42954461d",
    "bmp-P": "6f68fe108426a548",
    "bmp-RGB": "3d0cbf70d818e173",
    "bmp-RGBA": "3d0cbf70d818e173",
    "bmp-run-length": "1c938c601b2d7766",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_decode_colour_mode_gives_golden_pixels(name):
    pixels = np.asarray(decode(MODES[name]()))

    assert hashlib.sha256(pixels.tobytes()).hexdigest()[:16] == GOLDEN[name]


@pytest.mark.parametrize("name", MODES)
def test_decode_colour_mode_is_deterministic(name):
    data = MODES[name]()

    first, second = decode(data), decode(data)

    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()


def test_golden_pixels_cover_every_lossless_mode():
    assert set(GOLDEN) == {name for name in MODES if not name.startswith("jpeg")}


def test_decode_deep_grey_is_scaled_not_clipped():
    pixels = np.asarray(decode(MODES["png-I;16"]()))

    assert np.array_equal(pixels[..., 0].ravel(), np.arange(256))
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_decode_transparent_pixels_become_background():
    clear = Image.new("RGBA", (4, 4), (*RED, 0))

    assert decode(pictures.png(clear)).getpixel((1, 1)) == BACKGROUND


@pytest.mark.parametrize(
    ("name", "pixel"),
    [("png-L-tRNS", (1, 0)), ("png-RGB-tRNS", (1, 1)), ("png-I;16-tRNS", (1, 0))],
)
def test_decode_transparent_colour_becomes_background(name, pixel):
    assert decode(MODES[name]()).getpixel(pixel) == BACKGROUND


def test_decode_adobe_cmyk_and_plain_cmyk_show_the_same_colours():
    adobe = np.asarray(decode(pictures.adobe_cmyk())).astype(int)
    plain = np.asarray(decode(pictures.plain_cmyk())).astype(int)

    assert np.abs(adobe - plain).max() <= 2


def test_decode_half_transparent_is_half_background():
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))

    assert decode(pictures.png(half)).getpixel((0, 0)) == (127, 127, 127)


# --- limits ---------------------------------------------------------------------------------------


def test_decode_pixel_budget_is_inclusive():
    data = pictures.png(pictures.picture(RED, (10, 10)))

    assert decode(data, ImageLimits(max_pixels=100)).size == (10, 10)
    with pytest.raises(ImageTooManyPixels, match=r"10 x 10 = 0\.0 megapixels"):
        decode(data, ImageLimits(max_pixels=99))


def test_decode_webp_has_its_own_pixel_budget():
    with pytest.raises(ImageTooManyPixels, match="WebP"):
        decode(pictures.webp(), ImageLimits(max_webp_pixels=3000))


def test_decode_aspect_limit_is_inclusive():
    data = pictures.png(pictures.picture(RED, (20, 2)))

    assert decode(data, ImageLimits(max_aspect=10)).size == (20, 2)
    with pytest.raises(ImageBadDimensions, match=r"9\.9 times"):
        decode(data, ImageLimits(max_aspect=9.9))


def test_decode_shorter_side_limit_is_inclusive():
    data = pictures.png(pictures.picture(RED, (20, 2)))

    assert decode(data, ImageLimits(min_side_px=2)).size == (20, 2)
    with pytest.raises(ImageBadDimensions, match="must have at least 3"):
        decode(data, ImageLimits(min_side_px=3))


def test_decode_scan_limit_is_inclusive():
    data = pictures.many_scans(30)

    assert decode(data, ImageLimits(max_jpeg_scans=30)).size == (32, 32)
    with pytest.raises(ImageTooComplex, match="more than 29 scans"):
        decode(data, ImageLimits(max_jpeg_scans=29))


def test_decode_scan_limit_shrinks_with_the_picture():
    data = pictures.many_scans(30)

    assert decode(data, ImageLimits(max_jpeg_scan_pixels=30 * 32 * 32)).size == (32, 32)
    with pytest.raises(ImageTooComplex, match="more than 29 scans"):
        decode(data, ImageLimits(max_jpeg_scan_pixels=30 * 32 * 32 - 1))


def test_decode_baseline_jpeg_is_never_too_complex():
    assert decode(pictures.jpeg(), ImageLimits(max_jpeg_scan_pixels=1)).size == (64, 48)


# --- hostile files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_decode_hostile_file_ends_as_allowed(name, capfd):
    file = HOSTILE[name]

    assert outcome(file.data) in file.allowed
    assert capfd.readouterr() == ("", "")


def test_hostile_table_is_large():
    assert len(HOSTILE) >= 120


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, file in HOSTILE.items()
        if not file.allowed & {ACCEPTED, "image_undecodable", "image_truncated"}
    ],
)
@pytest.mark.usefixtures("no_decoder")
def test_decode_refusable_file_never_reaches_a_decoder(name):
    file = HOSTILE[name]

    assert outcome(file.data) in file.allowed


@pytest.mark.parametrize("name", FORMATS)
def test_decode_allows_pillow_only_the_sniffed_format(name, monkeypatch):
    asked = []
    open_image = Image.open

    def record(file, formats):
        asked.append(formats)
        return open_image(file, formats=formats)

    monkeypatch.setattr(Image, "open", record)

    decode(pictures.of_format(name))

    assert asked == [(name.upper(),)]


def test_decoding_loads_only_the_plugins_of_accepted_formats(tmp_path):
    paths = [tmp_path / name for name in FORMATS]
    for path in paths:
        path.write_bytes(pictures.of_format(path.name))
    code = (
        "import sys; from pathlib import Path; from contract.images import decode; "
        "[decode(Path(path).read_bytes()) for path in sys.argv[1:]]; "
        "print(*[name for name in sys.modules if name.endswith('ImagePlugin')])"
    )

    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, *paths],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )

    loaded = {name.removesuffix("ImagePlugin").removeprefix("PIL.") for name in done.stdout.split()}
    preloaded = {"Avif", "Ppm"}  # Ppm by Pillow, with the other common ones
    assert loaded - preloaded <= {"Bmp", "Gif", "Jpeg", "Png", "WebP"}


@pytest.mark.parametrize("name", FORMATS)
def test_format_that_is_switched_off_is_refused_with_those_that_are_not(name):
    data = pictures.of_format(name)
    others = ImageLimits(formats=[other for other in FORMATS if other != name])

    assert inspect(data, ImageLimits(formats=(name,))).decoder.name == name
    with pytest.raises(UnsupportedMediaType) as refused:
        inspect(data, others)

    listed = ", ".join(other.upper() for other in FORMATS if other != name)
    assert str(refused.value) == (
        f"the picture is {name.upper()}, which is switched off on the server; accepted are {listed}"
    )


@pytest.mark.parametrize("percent", CUTS)
@pytest.mark.parametrize("name", [*FORMATS, "progressive", "interlaced", "lossless"])
def test_decode_cut_file_is_never_a_picture(name, percent):
    data = {
        "progressive": lambda: pictures.jpeg(pictures.photo(), progressive=True),
        "interlaced": lambda: interlaced_png(interlaced_rows()),
        "lossless": lambda: pictures.webp(pictures.photo(), lossless=True),
    }.get(name, lambda: pictures.of_format(name, pictures.photo()))()

    assert outcome(pictures.cut(data, percent)) in {
        "unsupported_media_type",
        "image_undecodable",
        "image_truncated",
    }


def interlaced_rows() -> bytes:
    """Returns the raw data of a random 32 x 32 RGB picture in the seven passes of Adam7."""
    raw = np.random.default_rng(1).integers(1, 255, (32, 96), dtype=np.uint8)
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    return b"".join(
        b"\0" + raw[y, : 3 * len(range(left, 32, dx))].tobytes()
        for left, top, dx, dy in [*passes, (0, 1, 1, 2)]
        for y in range(top, 32, dy)
    )


def interlaced_png(rows: bytes) -> bytes:
    return pictures.png_of(pictures.ihdr(32, 32, 8, 2, 1), pictures.idat(rows), pictures.IEND)


def test_decode_interlaced_png_is_accepted():
    assert decode(interlaced_png(interlaced_rows())).size == (32, 32)


@pytest.mark.parametrize("rows", [0, 1, 11, 15])
def test_decode_png_whose_data_ends_early_is_truncated(rows):
    # A zlib stream that ends properly but early leaves black rows, and Pillow reports no error.
    raw = (b"\0" + bytes(RED) * 16) * rows
    data = pictures.png_of(pictures.ihdr(16, 16), pictures.idat(raw), pictures.IEND)

    with pytest.raises(ImageTruncated):
        decode(data)


@pytest.mark.parametrize("lost", [1, 97, 98, 1700, 3000])
def test_decode_interlaced_png_whose_data_ends_early_is_truncated(lost):
    with pytest.raises(ImageTruncated):
        decode(interlaced_png(interlaced_rows()[:-lost]))


def test_decode_png_with_black_last_row_is_accepted():
    assert decode(pictures.png(pictures.picture((0, 0, 0)))).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("name", FORMATS)
def test_decode_flipped_bits_end_in_a_picture_or_an_image_error(name):
    data = pictures.of_format(name, pictures.photo())
    positions = np.random.default_rng(7).integers(0, len(data) * 8, 150)

    outcomes = {outcome(pictures.flip_bit(data, int(position))) for position in positions}

    assert ACCEPTED in outcomes


def test_decode_gif_whose_frame_exceeds_the_screen_does_not_warn():
    data = pictures.gif_of(pictures.gif_frame(9999, 9999), b";")

    with warnings.catch_warnings(record=True) as caught, pytest.raises(ImageTooManyPixels):
        decode(data)

    assert caught == []


def test_decode_error_of_a_decoder_is_kept_as_the_cause():
    with pytest.raises(ImageUndecodable) as caught:
        decode(HOSTILE["png-not-zlib"].data)

    assert caught.value.__cause__ is not None


def test_decode_message_never_contains_the_input():
    with pytest.raises(UnsupportedMediaType) as caught:
        decode(b"<marker-4711>")

    assert "4711" not in str(caught.value)


def test_decode_out_of_memory_is_not_an_image_error(monkeypatch):
    def fail(*_args, **_kwargs):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)

    with pytest.raises(MemoryError):
        decode(pictures.png())


def test_decode_bomb_error_of_pillow_means_too_many_pixels(monkeypatch):
    def fail(*_args, **_kwargs):
        raise Image.DecompressionBombError

    monkeypatch.setattr(Image, "open", fail)

    with pytest.raises(ImageTooManyPixels):
        decode(pictures.png())


def test_decode_after_a_failure_gives_the_same_pixels_as_before():
    before = decode(pictures.png()).tobytes()

    for name in ("png-not-zlib", "jpeg-no-quantization", "webp-no-picture"):
        outcome(HOSTILE[name].data)

    assert decode(pictures.png()).tobytes() == before

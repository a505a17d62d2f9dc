import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ImageTooComplex, ImageTooManyPixels
from contract.images import headers
from tests import pictures


def read_jpeg(data):
    return headers.read_jpeg(data, lambda _: None)


def count_jpeg_scans(data, stop_after):
    return headers.count_jpeg_scans(data, read_jpeg(data), stop_after)


def late_jpeg_size(data):
    return headers.late_jpeg_size(data, read_jpeg(data))


def jpeg_size(data):
    return read_jpeg(data).size


def is_one_scan(data):
    return headers.jpeg_is_one_scan(data, read_jpeg(data))


SIZES = {
    "png": (headers.png_size, pictures.png_of(pictures.ihdr(7, 9))),
    "gif": (headers.gif_size, pictures.gif_of(screen=(7, 9))),
    "bmp": (headers.bmp_size, pictures.bmp_header(7, 9)),
    "bmp-top-down": (headers.bmp_size, pictures.bmp_header(7, -9)),
    "bmp-core": (headers.bmp_size, b"BM" + bytes(12) + struct.pack("<IHHHH", 12, 7, 9, 1, 24)),
    "webp-lossless": (headers.webp_size, pictures.riff(pictures.vp8l(7, 9))),
    "webp-extended": (headers.webp_size, pictures.riff(pictures.vp8x(7, 9))),
    "webp-lossy": (headers.webp_size, pictures.webp(pictures.picture(size=(7, 9)))),
    "jpeg": (jpeg_size, pictures.jpeg_header(7, 9)),
}


@pytest.mark.parametrize(("size", "data"), SIZES.values(), ids=SIZES)
def test_size_is_read_from_the_header(size, data):
    assert size(data) == (7, 9)


@pytest.mark.parametrize("name", [name for name in SIZES if not name.startswith("webp")])
def test_size_of_a_cut_header_is_unknown(name):
    size, data = SIZES[name]

    assert size(data[:9]) is None


def test_size_of_a_jpeg_cut_inside_the_frame_header_is_unknown():
    data = pictures.jpeg_header(7, 9)

    assert jpeg_size(data[: data.index(b"\xff\xc0") + 6]) is None


def test_read_jpeg_tells_the_size_before_it_walks_on():
    # A file is refused for its size whatever follows the frame header.

    def refuse(size):
        raise ImageTooManyPixels(f"{size}")

    data = pictures.jpeg_header(7, 9) + b"\xff\xfe\0\2" * 10_001

    with pytest.raises(ImageTooManyPixels, match=r"\(7, 9\)"):
        headers.read_jpeg(data, refuse)


def test_late_jpeg_size_is_that_of_a_frame_behind_the_scan():
    data = b"\xff\xd8" + pictures.jpeg_segment(0xDA, b"") + pictures.jpeg_header(7, 9)[2:]

    assert read_jpeg(data) == headers.JpegHeader(None, 0, ((0, 2), (2, len(data))), b"", None)
    assert late_jpeg_size(data) == (7, 9)
    assert late_jpeg_size(data[:4]) is None


def test_read_jpeg_parts_are_the_file_but_for_what_makes_no_pixels():
    plain = pictures.jpeg_with()
    comment, profile = pictures.jpeg_segment(0xFE, b"x"), pictures.jpeg_segment(0xE2, b"ICC")
    data = pictures.jpeg_with(comment, profile)

    parts = read_jpeg(data).parts

    assert b"".join(data[start:stop] for start, stop in parts) == plain
    assert read_jpeg(plain).parts[0] == (0, 2)
    assert read_jpeg(plain).parts[-1] == (plain.find(b"\xff\xda"), len(plain))


def test_read_jpeg_does_not_look_behind_the_first_scan(monkeypatch):
    walked, segments = [], headers.jpeg_segments

    def watched(data):
        for segment in segments(data):
            walked.append(segment)
            yield segment

    monkeypatch.setattr(headers, "jpeg_segments", watched)

    read_jpeg(pictures.many_scans(12))

    assert [marker for marker, _, _ in walked].count(0xDA) == 1


def test_webp_size_of_another_chunk_is_unknown():
    assert headers.webp_size(pictures.riff((b"ALPH", bytes(30)))) is None


def test_webp_size_of_the_largest_picture():
    assert headers.webp_size(pictures.riff(pictures.vp8l(16384, 16384))) == (16384, 16384)
    assert headers.webp_size(pictures.riff(pictures.vp8x(2**24, 2**24))) == (2**24, 2**24)


@given(st.binary(max_size=200))
def test_headers_any_bytes_are_walked_to_an_end(data):
    for size in (headers.png_size, headers.gif_size, headers.bmp_size, headers.webp_size):
        size(data)

    assert count_jpeg_scans(data, stop_after=10) <= 11
    assert len(list(headers.png_chunks(data))) <= 17
    assert headers.exif_orientation(b"II*\0" + data) is None or len(data) >= 12


@pytest.mark.parametrize("count", [10, 30])
def test_count_jpeg_scans_counts_all(count):
    assert count_jpeg_scans(pictures.many_scans(count), stop_after=100) == count


def test_count_jpeg_scans_continues_where_the_header_ends(monkeypatch):
    data = pictures.many_scans(12)
    header, starts, segments = read_jpeg(data), [], headers.jpeg_segments

    def watched(data, position):
        starts.append(position)
        return segments(data, position)

    monkeypatch.setattr(headers, "jpeg_segments", watched)

    assert headers.count_jpeg_scans(data, header, stop_after=100) == 12
    assert starts == [data.find(b"\xff\xda")]


def test_count_jpeg_scans_stops_after_the_limit():
    assert count_jpeg_scans(pictures.many_scans(30), stop_after=5) == 6


def test_count_jpeg_scans_of_the_first_picture_only():
    assert count_jpeg_scans(pictures.jpeg() * 5, stop_after=100) == 1


def test_count_jpeg_scans_skips_segment_contents():
    thumbnail = pictures.jpeg_with(pictures.jpeg_segment(0xE1, pictures.many_scans(20)))

    assert count_jpeg_scans(thumbnail, stop_after=100) == 1


def test_count_jpeg_scans_passes_restart_markers():
    data = pictures.jpeg(pictures.photo((200, 200)), restart_marker_blocks=1)

    assert data.count(b"\xff\xd0") > 10
    assert count_jpeg_scans(data, stop_after=100) == 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_one_scan_of_a_sequential_picture(mode):
    assert is_one_scan(pictures.encode(pictures.photo().convert(mode), "JPEG"))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(pictures.jpeg(pictures.photo(), progressive=True), id="progressive"),
        pytest.param(b"", id="empty"),
        pytest.param(pictures.jpeg()[:100], id="cut-before-the-frame"),
        pytest.param(
            pictures.jpeg()[: pictures.jpeg().find(b"\xff\xda")], id="cut-before-the-scan"
        ),
        pytest.param(
            pictures.jpeg_with(pictures.jpeg_segment(0xC0, b"\x08\0\x20\0\x20\x01\x01\x11\0")),
            id="two-frames",
        ),
        pytest.param(pictures.jpeg()[:-2] + b"\xff" * 4096 + b"\xff\xd9", id="padded"),
    ],
)
def test_jpeg_is_one_scan_of_anything_else_is_false(data):
    assert not is_one_scan(data)


def test_jpeg_is_one_scan_with_a_scan_per_component_is_false():
    data = bytearray(pictures.jpeg(pictures.photo()))
    scan = data.find(b"\xff\xda")
    data[scan + 4] = 1

    assert not is_one_scan(bytes(data))


def test_jpeg_segments_finds_a_marker_across_two_search_steps(monkeypatch):
    monkeypatch.setattr(headers, "_SEARCH_STEP_BYTES", 3)
    data = pictures.many_scans(12)

    assert count_jpeg_scans(data, stop_after=100) == 12


def test_jpeg_segments_end_at_a_long_gap():
    junk = bytes(70_000)
    data = pictures.jpeg_with(pictures.jpeg_segment(0xFE, b""), junk)

    assert [marker for marker, _, _ in headers.jpeg_segments(data)] == [0xFE]


@pytest.mark.parametrize("filler", [b"\xff\xfe\0\2", b"\xff\x01"], ids=["comments", "standalone"])
def test_jpeg_segments_has_an_end(filler):
    with pytest.raises(ImageTooComplex, match="10,000 markers"):
        list(headers.jpeg_segments(pictures.jpeg_with(filler * 10_001)))


def test_png_chunks_end_with_the_last_one():
    data = pictures.small_png() + pictures.small_png()

    assert [kind for kind, _, _ in headers.png_chunks(data)] == [b"IHDR", b"IDAT", b"IEND"]


@pytest.mark.parametrize(
    ("depth", "colour", "n_bytes"),
    [(8, 2, 9 * 22), (8, 6, 9 * 29), (1, 0, 9 * 2), (2, 3, 9 * 3), (16, 4, 9 * 29), (8, 5, 0)],
    ids=["rgb", "rgba", "bits", "palette", "deep-grey-alpha", "unknown"],
)
def test_png_raw_bytes_counts_filters_and_padding(depth, colour, n_bytes):
    data = pictures.png_of(pictures.ihdr(7, 9, depth, colour))

    assert headers.png_raw_bytes(data) == n_bytes


@pytest.mark.parametrize(("size", "n_bytes"), [((1, 1), 4), ((8, 8), 207), ((2, 1), 8)])
def test_png_raw_bytes_of_interlaced_passes(size, n_bytes):
    data = pictures.png_of(pictures.ihdr(size[0], size[1], interlace=1))

    assert headers.png_raw_bytes(data) == n_bytes


def test_png_raw_bytes_without_header_is_zero():
    assert headers.png_raw_bytes(b"\x89PNG\r\n\x1a\n") == 0


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@pytest.mark.parametrize("value", [0, 1, 6, 9, 65535])
def test_exif_orientation_in_both_byte_orders(order, value):
    block = pictures.exif_block([(0x010F, 2, 1, 0), (0x0112, 3, 1, value)], order)

    assert headers.exif_orientation(block) == value
    assert headers.exif_orientation(block.removeprefix(b"Exif\0\0")) == value


def test_exif_orientation_stored_as_long():
    assert headers.exif_orientation(pictures.exif_block([(0x0112, 4, 1, 6)])) == 6


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        b"XX*\0" + bytes(20),
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\x09\0",
        pictures.exif_block([(0x0112, 2, 1, 6)]),
        pictures.exif_block([(0x0100, 3, 1, 6)]),
    ],
    ids=["empty", "prefix", "order", "cut", "offset", "cut-entries", "ascii", "other-tag"],
)
def test_exif_orientation_of_a_malformed_block_is_none(block):
    assert headers.exif_orientation(block) is None

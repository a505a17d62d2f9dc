import pytest

from contract.errors import ImageTooComplex, ImageTruncated, ImageUndecodable
from contract.images.heif.boxes import MAX_BOXES, Fields, boxes, brand_of
from tests.contract.images.heif.builder import box


def kinds(data: bytes) -> list[bytes]:
    return [kind for kind, _ in boxes(Fields(data))]


@pytest.mark.parametrize(
    ("brands", "expected"),
    [
        ((b"heic", b"mif1", b"heic"), "heic"),
        ((b"heix", b"mif1", b"miaf"), "heic"),
        ((b"mif1", b"heic"), "heic"),
        ((b"msf1", b"hevc"), "heic"),
        ((b"avif", b"mif1", b"miaf"), "avif"),
        ((b"mif1", b"miaf", b"avif"), "avif"),
        ((b"avis", b"msf1"), "avif"),
        ((b"heic", b"avif"), "heic"),
        ((b"isom", b"mp41"), None),
        ((b"qt  ",), None),
    ],
)
def test_brand_of_prefers_the_major_brand(brands, expected):
    assert brand_of(box(b"ftyp", brands[0], bytes(4), *brands[1:])) == expected


def test_brand_of_does_not_read_an_endless_list():
    assert brand_of(b"\xff\xff\xff\xffftypisom" + bytes(400) + b"heic") is None


def test_boxes_can_have_long_lengths_and_reach_the_end():
    long = b"\0\0\0\1long" + (16 + 3).to_bytes(8, "big") + b"abc"

    found = list(boxes(Fields(box(b"one_", b"x") + long + b"\0\0\0\0last" + b"rest")))

    assert [(kind, content.rest()) for kind, content in found] == [
        (b"one_", b"x"),
        (b"long", b"abc"),
        (b"last", b"rest"),
    ]


@pytest.mark.parametrize("length", [2, 7], ids=["two", "seven"])
def test_box_shorter_than_its_own_head_is_refused(length):
    with pytest.raises(ImageUndecodable):
        kinds(length.to_bytes(4, "big") + b"free" + bytes(20))


def test_box_longer_than_the_file_is_truncated():
    with pytest.raises(ImageTruncated):
        kinds(box(b"mdat", bytes(20))[:-1])


def test_box_longer_than_its_parent_is_refused():
    data = box(b"free", bytes(20)) + bytes(40)

    with pytest.raises(ImageUndecodable):
        list(boxes(Fields(data, 0, 20)))


def test_boxes_are_counted():
    assert len(kinds(box(b"free") * (MAX_BOXES - 1))) == MAX_BOXES - 1
    with pytest.raises(ImageTooComplex):
        kinds(box(b"free") * (MAX_BOXES + 1))


def test_fields_do_not_read_beyond_their_part():
    fields = Fields(b"abcdef", 0, 3)

    assert fields.take(2) == b"ab"
    with pytest.raises(ImageUndecodable):
        fields.number(2)

import threading

import numpy as np
import pytest
from PIL import Image

from contract.images import decode
from tests.contract.images.heif import FILES
from tests.contract.images.heif.builder import needs_heic
from tests.pictures import (
    ACCEPTED,
    HOSTILE,
    IEND,
    bmp,
    encode,
    gif,
    idat,
    ihdr,
    jpeg,
    photo,
    picture,
    png,
    png_of,
    webp,
)
from tests.training.helpers.picture_sets import samples
from training.data.checks.facts import picture_facts, read_facts, thumbnails
from training.data.samples import Sample

PHOTO = photo((80, 60), seed=5)


def facts_of(data):
    return picture_facts(Sample("x", 0, data=data))


@pytest.mark.parametrize(
    ("data", "format_name", "mode"),
    [
        (jpeg(PHOTO), "jpeg", "RGB"),
        (jpeg(PHOTO.convert("L")), "jpeg", "L"),
        (jpeg(PHOTO.convert("CMYK")), "jpeg", "CMYK"),
        (png(PHOTO.convert("RGBA")), "png", "RGBA"),
        (png(PHOTO.convert("P")), "png", "P"),
        (png(PHOTO.convert("P"), transparency=3), "png", "P with transparency"),
        (png(Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80))), "png", "I;16"),
        (gif(PHOTO), "gif", "P"),
        (webp(PHOTO), "webp", "RGB"),
        (bmp(PHOTO), "bmp", "RGB"),
        (encode(PHOTO, "AVIF"), "avif", "RGB"),
    ],
    ids=[
        "jpeg",
        "grey",
        "cmyk",
        "rgba",
        "palette",
        "clear",
        "16-bit",
        "gif",
        "webp",
        "bmp",
        "avif",
    ],
)
def test_facts_hold_format_mode_and_size(data, format_name, mode):
    facts = facts_of(data)

    assert facts.readable
    assert (facts.format, facts.mode, facts.size_px) == (format_name, mode, (80, 60))
    assert (len(facts.digest), len(facts.thumbnail)) == (32, 32 * 32)


@needs_heic
def test_facts_of_a_phones_picture_are_of_the_upright_one():
    facts = facts_of((FILES / "turned-6.heic").read_bytes())

    assert (facts.format, facts.mode, facts.size_px) == ("heic", "RGB", (64, 48))


def test_facts_show_16_bit_colours_that_pillow_hides():
    data = png_of(ihdr(2, 2, 16, 2), idat((b"\0" + b"\x12\x34" * 6) * 2), IEND)

    assert facts_of(data).mode == "RGB 16-bit"


def test_read_facts_accepts_or_refuses_hostile_files_as_the_service_does():
    files = [Sample(name, 0, data=hostile.data) for name, hostile in HOSTILE.items()]

    facts = read_facts(files)

    assert len(facts) == len(files)
    for sample, one in zip(files, facts, strict=True):
        allowed = HOSTILE[sample.name].allowed
        assert ACCEPTED in allowed if one.readable else allowed - {ACCEPTED}, sample.name
        assert one.readable == bool(one.digest) == bool(one.thumbnail) == (not one.error)


def test_facts_of_a_missing_file_hold_the_reason(tmp_path):
    facts = picture_facts(Sample("x", 0, path=tmp_path / "none.jpg"))

    assert facts.error == "No such file or directory"


def test_facts_of_a_picture_too_large_for_memory_hold_the_reason(monkeypatch):
    def fail(_):
        raise MemoryError

    monkeypatch.setattr("contract.images.decode", fail)

    assert facts_of(jpeg(PHOTO)).error == "the picture does not fit into memory"


def test_facts_digest_depends_on_pixels_not_on_the_file():
    data = jpeg(PHOTO)
    tagged = data[:2] + b"\xff\xfe\x00\x07hello" + data[2:]
    decoded = decode(data)

    digests = {facts_of(one).digest for one in (data, tagged, png(decoded), bmp(decoded))}

    assert len(digests) == 1


def test_facts_digest_depends_on_the_shape():
    wide, tall = picture((7, 7, 7), (8, 4)), picture((7, 7, 7), (4, 8))

    assert facts_of(png(wide)).digest != facts_of(png(tall)).digest


def test_facts_are_of_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6

    facts = facts_of(jpeg(PHOTO, exif=exif))

    assert facts.size_px == (60, 80)


def test_read_facts_keeps_the_order_and_reports_progress_from_the_calling_thread():
    pictures = samples(*(f"{i}.jpg" for i in range(20)))
    seen = []

    facts = read_facts(pictures, lambda *done: seen.append((threading.current_thread(), *done)))

    assert [one.digest for one in facts] == [picture_facts(one).digest for one in pictures]
    assert seen == [(threading.current_thread(), i + 1, 20) for i in range(20)]


def test_read_facts_stops_when_the_callback_raises():
    class Interrupted(Exception):
        pass

    def interrupt(done, _):
        if done == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        read_facts(samples(*(f"{i}.jpg" for i in range(9))), interrupt)


def test_thumbnails_are_grey_and_squashed():
    facts = read_facts([Sample("x", 0, data=encode(picture((0, 0, 255), (90, 10)), "PNG"))])

    assert thumbnails(facts).shape == (1, 32, 32)
    assert set(np.unique(thumbnails(facts))) == {29}  # 0.114 of blue, as Rec. 601 weighs it


def test_thumbnails_of_no_facts_are_empty():
    assert thumbnails([]).shape == (0, 32, 32)

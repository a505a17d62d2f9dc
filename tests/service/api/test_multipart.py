from __future__ import annotations

import asyncio
from tempfile import SpooledTemporaryFile

import pytest

from service.api.multipart import parse_form
from service.errors import MalformedRequest

pytestmark = pytest.mark.anyio

KIND = "multipart/form-data; boundary=b"
NAME = 'Content-Disposition: form-data; name="a"'
FILE = f'{NAME}; filename="x"'


def part(*headers: str, data: bytes = b"data") -> bytes:
    return b"--b\r\n" + "".join(f"{h}\r\n" for h in headers).encode() + b"\r\n" + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


async def test_multipart_parts_keep_order_names_and_bytes():
    every_byte = bytes(range(256))

    body = form(
        part('Content-Disposition: form-data; name="one"', data=b"\r\n1\x00" + every_byte),
        part('content-disposition: form-data; name=two; filename="../x"', data=every_byte * 3),
        part('CONTENT-DISPOSITION: FORM-DATA; NAME="one"', "Content-Type: IMAGE/PNG", data=b""),
    )

    assert await parse_form(body, KIND, 5) == [
        ("one", b"\r\n1\x00" + every_byte, False),
        ("two", every_byte * 3, True),
        ("one", b"", False),
    ]


@pytest.mark.parametrize("charset", ["utf-16", "unicode_escape", "base64", "none"])
@pytest.mark.parametrize("order", ["boundary=b; charset={}", "charset={}; boundary=b"])
async def test_multipart_charset_of_the_client_changes_no_byte(charset, order):
    kind = f"multipart/form-data; {order.format(charset)}"

    parts = await parse_form(form(part(NAME, data=bytes(range(256)))), kind, 5)

    assert parts == [("a", bytes(range(256)), False)]


async def test_multipart_field_name_that_is_not_utf8_is_read():
    body = b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--b--\r\n'

    ((name, data, _),) = await parse_form(body, KIND, 5)

    assert (bool(name), data) == (True, b"x")


async def test_multipart_empty_lines_before_and_text_after_are_ignored():
    body = b"\r\n\r\n" + form(part(NAME)) + b"goodbye"

    assert len(await parse_form(body, KIND, 5)) == 1


@pytest.mark.parametrize("size", [1_000_000, 262_144, 262_143, 200])
async def test_multipart_large_files_are_whole_and_stay_in_memory(monkeypatch, size):
    monkeypatch.setattr(SpooledTemporaryFile, "rollover", None)
    data = bytes(range(200)) * (size // 200)

    parts = await parse_form(form(part(FILE, data=data), part(NAME, data=data)), KIND, 5)

    assert parts == [("a", data, True), ("a", data, False)]


async def test_multipart_large_form_lets_other_tasks_run():
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(count())
    await parse_form(form(part(FILE, data=b"x" * 3_000_000)), KIND, 5)
    other.cancel()

    assert turns >= 10


@pytest.mark.parametrize("count", [5, 6])
async def test_multipart_part_count_is_limited(count):
    body = form(*[part(NAME)] * count)

    if count == 5:
        assert len(await parse_form(body, KIND, 5)) == 5
    else:
        with pytest.raises(MalformedRequest, match="more than 5 parts"):
            await parse_form(body, KIND, 5)


REFUSED = {
    "no_closing_boundary": (part(NAME), KIND),
    "cut_in_part": (form(part(NAME))[:-12], KIND),
    "no_boundary": (form(part(NAME)), "multipart/form-data"),
    "empty_boundary": (form(part(NAME)), "multipart/form-data; boundary="),
    "other_boundary": (form(part(NAME)), "multipart/form-data; boundary=c"),
    "huge_boundary": (form(part(NAME)), "multipart/form-data; boundary=" + "b" * 10_000),
    "bad_header": (form(part(NAME, "no colon here")), KIND),
    "many_headers": (form(part(NAME, *[f"X-{n}: y" for n in range(17)])), KIND),
    "huge_header": (form(part(NAME, "X: " + "y" * 5000)), KIND),
    "million_byte_header": (form(part(NAME, "X: " + "y" * 1_000_000)), KIND),
    "no_disposition": (form(part()), KIND),
    "no_name": (form(part("Content-Disposition: form-data; filename=x")), KIND),
    "empty": (b"", KIND),
    "noise": (bytes(range(256)) * 10, KIND),
}


@pytest.mark.parametrize(("body", "kind"), REFUSED.values(), ids=REFUSED.keys())
async def test_multipart_malformed_body_refused(body, kind):
    with pytest.raises(MalformedRequest, match="multipart"):
        await parse_form(body, kind, 5)


ODD_KINDS = ["boundary=b", '; boundary="b', "; boundary*=utf-8''b", "; boundary=\xff", ";;;;=", ""]


@pytest.mark.parametrize("parameters", ODD_KINDS)
async def test_multipart_odd_content_type_never_crashes(parameters):
    try:
        parts = await parse_form(form(part(NAME)), "multipart/form-data" + parameters, 5)
    except MalformedRequest:
        return
    assert len(parts) == 1


ODD_DISPOSITIONS = {
    "form-data; name": 1,
    'form-data; name="a\\"b"': 1,
    "form-data; name=a; filename*=''": 1,
    "form-data; name=a; name=b": 1,
    "form-data; name=": 1,
    "attachment; name=a; filename=": 1,
    "form-data; name*=utf-8''%ff": 0,
    "form-data; filename=x": 0,
    ";;;": 0,
    "": 0,
}


@pytest.mark.parametrize("disposition", ODD_DISPOSITIONS)
async def test_multipart_odd_disposition_is_read_if_it_names_the_part(disposition):
    body = form(part(f"Content-Disposition: {disposition}"))

    if ODD_DISPOSITIONS[disposition]:
        ((_, data, _),) = await parse_form(body, KIND, 5)
        assert data == b"data"
    else:
        with pytest.raises(MalformedRequest, match="every part needs a name"):
            await parse_form(body, KIND, 5)


async def test_multipart_body_cut_anywhere_is_refused_or_read():
    body = form(part(FILE), part(NAME))

    outcomes = set[object]()
    for end in range(len(body)):
        try:
            outcomes.add(len(await parse_form(body[:end], KIND, 5)))
        except MalformedRequest:
            outcomes.add("refused")

    assert outcomes <= {"refused", 2}


async def test_multipart_flood_of_near_boundaries_refused_before_parsing(monkeypatch):
    monkeypatch.setattr("service.api.multipart._FormParser", None)
    body = b"--x\r\n\r\n" + b"\r\n--xy" * 1_000_000 + b"\r\n--x--"

    with pytest.raises(MalformedRequest, match="more than 3 parts"):
        await parse_form(body, "multipart/form-data; boundary=x", 3)

from __future__ import annotations

import pytest

from service.api.multipart import Part, parse_multipart
from service.errors import MalformedRequest

KIND = "multipart/form-data; boundary=b"


def part(*headers: str, data: bytes = b"data") -> bytes:
    return b"--b\r\n" + "".join(f"{h}\r\n" for h in headers).encode() + b"\r\n" + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


def test_multipart_parts_keep_order_names_and_bytes():
    body = form(
        part('Content-Disposition: form-data; name="one"', data=b"\r\n1\x00"),
        part(
            'content-disposition: form-data; name=two; filename="../x"', "Content-Type: IMAGE/PNG"
        ),
    )

    parts = parse_multipart(body, KIND, 5)

    assert parts == [
        Part("one", False, "", bytearray(b"\r\n1\x00")),
        Part("two", True, "image/png", bytearray(b"data")),
    ]


def test_multipart_part_without_headers_is_read():
    assert parse_multipart(form(part()), KIND, 5) == [Part(data=bytearray(b"data"))]


def test_multipart_field_name_that_is_not_utf8_is_replaced():
    body = b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--b--\r\n'

    (one,) = parse_multipart(body, KIND, 5)

    assert one.name


def test_multipart_empty_lines_before_and_text_after_are_ignored():
    body = b"\r\n\r\n" + form(part()) + b"goodbye"

    assert len(parse_multipart(body, KIND, 5)) == 1


@pytest.mark.parametrize("count", [5, 6])
def test_multipart_part_count_is_limited(count):
    body = form(*[part()] * count)

    if count == 5:
        assert len(parse_multipart(body, KIND, 5)) == 5
    else:
        with pytest.raises(MalformedRequest, match="more than 5 parts"):
            parse_multipart(body, KIND, 5)


REFUSED = {
    "no_closing_boundary": (part(), KIND),
    "cut_in_part": (form(part())[:-12], KIND),
    "no_boundary": (form(part()), "multipart/form-data"),
    "empty_boundary": (form(part()), "multipart/form-data; boundary="),
    "other_boundary": (form(part()), "multipart/form-data; boundary=c"),
    "huge_boundary": (form(part()), "multipart/form-data; boundary=" + "b" * 10_000),
    "bad_header": (form(part("no colon here")), KIND),
    "many_headers": (form(part(*[f"X-{n}: y" for n in range(17)])), KIND),
    "huge_header": (form(part("X: " + "y" * 5000)), KIND),
    "million_byte_header": (form(part("X: " + "y" * 1_000_000)), KIND),
    "empty": (b"", KIND),
    "noise": (bytes(range(256)) * 10, KIND),
}


@pytest.mark.parametrize(("body", "kind"), REFUSED.values(), ids=REFUSED.keys())
def test_multipart_body_that_is_not_well_formed_refused(body, kind):
    with pytest.raises(MalformedRequest, match="multipart"):
        parse_multipart(body, kind, 5)


ODD_KINDS = ["boundary=b", '; boundary="b', "; boundary*=utf-8''b", "; boundary=\xff", ";;;;=", ""]


@pytest.mark.parametrize("parameters", ODD_KINDS)
def test_multipart_odd_content_type_never_crashes(parameters):
    try:
        parts = parse_multipart(form(part()), "multipart/form-data" + parameters, 5)
    except MalformedRequest:
        return
    assert len(parts) == 1


ODD_DISPOSITIONS = [
    "form-data; name",
    'form-data; name="a\\"b"',
    "form-data; name*=utf-8''%ff",
    "form-data; filename*=''",
    ";;;",
    "",
    "form-data; name=a; name=b",
]


@pytest.mark.parametrize("disposition", ODD_DISPOSITIONS)
def test_multipart_odd_disposition_never_loses_the_data(disposition):
    (one,) = parse_multipart(form(part(f"Content-Disposition: {disposition}")), KIND, 5)

    assert one.data == b"data"


def test_multipart_every_cut_is_refused_or_read():
    body = form(part('Content-Disposition: form-data; name="one"'), part())

    outcomes = set[object]()
    for end in range(len(body)):
        try:
            outcomes.add(len(parse_multipart(body[:end], KIND, 5)))
        except MalformedRequest:
            outcomes.add("refused")

    assert outcomes <= {"refused", 2}


def test_parse_multipart_flood_of_near_boundaries_refused_unparsed(monkeypatch):
    monkeypatch.setattr("service.api.multipart.MultipartParser", None)
    body = b"--x\r\n\r\n" + b"\r\n--xy" * 1_000_000 + b"\r\n--x--"

    with pytest.raises(MalformedRequest, match="more than 3 parts"):
        parse_multipart(body, "multipart/form-data; boundary=x", 3)

"""Request bodies: exact size limits, upload timeouts, and the reader of each media type."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Iterable
from typing import Any

import pytest
from httpx2 import Response
from starlette.requests import ClientDisconnect, Request

from service.api.payload import (
    READERS,
    BodyLimits,
    ClassifyOptions,
    merge_options,
    parse_body,
    read_body,
)
from service.errors import (
    BodyTooLarge,
    InvalidParameter,
    MalformedRequest,
    MediaTypeRefused,
    Overloaded,
    RequestTimeout,
)
from service.http.problems import PROBLEMS
from service.serving.admission import Admission
from tests import tinymodel
from tests.e2e.server import ROOT
from tests.problems import assert_problem
from tests.service.asgi import call

RED = tinymodel.picture("red")
LIMITS = BodyLimits(max_bytes=100, max_images=3, timeout_s=5, min_rate_bytes_per_s=1000)


def request_of(chunks: Iterable[bytes | None], length: str | None = None) -> Request:
    """A request whose body arrives in these pieces; None waits forever."""
    queue = list(chunks)

    async def receive() -> dict[str, Any]:
        if queue and queue[0] is None:
            await asyncio.Event().wait()
        body = queue.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(queue)}

    headers = [] if length is None else [(b"content-length", length.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def make_admission(max_bytes: int = 10_000) -> Admission:
    return Admission(max_images=10, max_bytes=max_bytes)


@pytest.mark.anyio
@pytest.mark.parametrize("size", [99, 100], ids=["below", "at"])
@pytest.mark.parametrize("declare", [True, False], ids=["declared", "chunked"])
async def test_read_body_up_to_the_limit_is_read_completely(size, declare):
    body = bytes(range(size))

    with make_admission().slot() as slot:
        read = await read_body(
            request_of([body[:30], body[30:], b""], str(size) if declare else None), slot, LIMITS
        )

    assert read == body


@pytest.mark.anyio
@pytest.mark.parametrize("length", [None, "101", "99999999999999999999"])
async def test_read_body_above_the_limit_refused(length):
    admission = make_admission()

    with pytest.raises(BodyTooLarge), admission.slot() as slot:
        await read_body(request_of([b"x" * 60, b"x" * 41, None], length), slot, LIMITS)

    assert admission.n_bytes == 0


@pytest.mark.anyio
async def test_read_body_declared_too_large_refused_without_reading():
    message = "100 bytes; send a smaller picture, or raise CONVSERVE_MAX_BODY_BYTES"
    with pytest.raises(BodyTooLarge, match=message), make_admission().slot() as slot:
        await read_body(request_of([None], "101"), slot, LIMITS)


@pytest.mark.anyio
@pytest.mark.parametrize("length", ["99", "-5", "1e2", "\N{SUPERSCRIPT TWO}".encode().decode("l1")])
async def test_read_body_with_a_wrong_content_length_never_crashes(length):
    chunks = [b"x" * 60, b"x" * 40]

    with make_admission().slot() as slot:
        if length == "99":
            with pytest.raises(MalformedRequest):
                await read_body(request_of(chunks, length), slot, LIMITS)
        else:
            assert len(await read_body(request_of(chunks, length), slot, LIMITS)) == 100


@pytest.mark.anyio
async def test_read_body_bytes_stay_in_flight_until_the_slot_ends():
    admission = make_admission()

    with admission.slot() as slot:
        await read_body(request_of([b"x" * 60, b"x" * 40]), slot, LIMITS)
        held = admission.n_bytes

    assert (held, admission.n_bytes) == (100, 0)


@pytest.mark.anyio
async def test_read_body_beyond_the_limit_of_all_uploads_refused():
    with pytest.raises(Overloaded), make_admission(max_bytes=80).slot() as slot:
        await read_body(request_of([b"x" * 60, b"x" * 40]), slot, LIMITS)


@pytest.mark.anyio
async def test_read_body_that_stalls_times_out():
    limits = BodyLimits(max_bytes=100, max_images=1, timeout_s=0.01, min_rate_bytes_per_s=10**9)

    with pytest.raises(RequestTimeout), make_admission().slot() as slot:
        await read_body(request_of([b"x", None]), slot, limits)


@pytest.mark.anyio
async def test_read_body_timeout_grows_with_the_bytes():
    limits = BodyLimits(max_bytes=100, max_images=1, timeout_s=1.0, min_rate_bytes_per_s=1)

    pieces = [b"x" * 98, b"x", b"x"]  # the first extends the timeout by 98 s

    async def receive() -> dict[str, Any]:
        if len(pieces) < 3:
            await asyncio.sleep(0.6)  # together longer than the timeout alone
        body = pieces.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(pieces)}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)

    with make_admission().slot() as slot:
        assert len(await read_body(request, slot, limits)) == 100


@pytest.mark.anyio
async def test_read_body_in_one_chunk_is_not_copied():
    body = b"x" * 100

    with make_admission().slot() as slot:
        assert await read_body(request_of([body]), slot, LIMITS) is body


@pytest.mark.anyio
@pytest.mark.parametrize("pieces", [[], [b"x"]])
async def test_read_body_of_a_client_that_disconnects_ends(pieces):
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.disconnect"})

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)

    with pytest.raises(ClientDisconnect), make_admission().slot() as slot:
        await read_body(request, slot, LIMITS)


def padded_json(size: int) -> bytes:
    image = base64.b64encode(RED).decode()
    return f'{{"image": "{image}"}}'.encode().ljust(size)


def padded_multipart(size: int) -> bytes:
    head = b'--b\r\ncontent-disposition: form-data; name="a"; filename="a"\r\n\r\n'
    return (head + RED + b"\r\n--b--\r\n").ljust(size)


ENCODINGS = {
    "raw": ("image/png", lambda size: RED.ljust(size, b"\0")),
    "json": ("application/json", padded_json),
    "multipart": ("multipart/form-data; boundary=b", padded_multipart),
}


@pytest.mark.parametrize("size", [999, 1000, 1001])
@pytest.mark.parametrize(("kind", "body"), ENCODINGS.values(), ids=ENCODINGS.keys())
def test_classify_body_limit_is_exact(make_client, kind, body, size):
    client = make_client(max_body_bytes=1000)

    response = client.post("/v1/classify", content=body(size), headers={"content-type": kind})

    if size <= 1000:
        assert response.json()["predictions"][0]["label"] == "red"
    else:
        assert_problem(response, 413, "body_too_large")
        assert response.headers["connection"] == "close"


@pytest.mark.parametrize("size", [999, 1000, 1001])
@pytest.mark.parametrize(("kind", "body"), ENCODINGS.values(), ids=ENCODINGS.keys())
def test_classify_chunked_body_limit_is_exact(make_client, kind, body, size):
    client = make_client(max_body_bytes=1000)
    data = body(size)
    chunks = [data[start : start + 100] for start in range(0, size, 100)] + [b""]

    start, *bodies = client.portal.call(call, client.app, chunks, kind, "/v1/classify")

    response = Response(
        start["status"], headers=start["headers"], content=b"".join(one["body"] for one in bodies)
    )
    if size <= 1000:
        assert response.json()["predictions"][0]["label"] == "red"
    else:
        assert_problem(response, 413, "body_too_large")


@pytest.mark.anyio
@pytest.mark.parametrize("media_type", READERS)
async def test_parse_body_every_reader_survives_noise(media_type):
    kind = media_type.replace("*", "png")
    noise = bytes(range(256)) * 4

    try:
        upload = await parse_body(noise, kind, LIMITS)
    except (MalformedRequest, InvalidParameter):
        return
    assert upload.images == [noise]


@pytest.mark.anyio
@pytest.mark.parametrize("media_type", READERS)
async def test_parse_body_every_media_type_found_in_any_case_with_parameters(media_type):
    kind = f" {media_type.replace('*', 'png').upper()} ; Boundary=b"
    body = {"application/json": padded_json, "multipart/form-data": padded_multipart}

    upload = await parse_body(body.get(media_type, lambda _: RED)(0), kind, LIMITS)

    assert (upload.images, upload.as_list) == ([RED], False)


@pytest.mark.anyio
async def test_parse_body_unknown_type_refusal_names_the_supported_ones():
    with pytest.raises(MediaTypeRefused, match="multipart/form-data, application/json"):
        await parse_body(b"", "text/plain", LIMITS)


def test_merge_options_without_options_in_body_keeps_query():
    query = ClassifyOptions(top_k=2)

    assert merge_options(query, {}) is query


def test_merge_options_body_wins_over_query():
    merged = merge_options(ClassifyOptions(top_k=2, min_probability=0.5), {"top_k": "1"})

    assert merged == ClassifyOptions(top_k=1, min_probability=0.5)


@pytest.mark.anyio
async def test_parse_body_base64_wrapped_in_lines_is_read():
    wrapped = base64.encodebytes(RED * 3).decode()

    upload = await parse_body(
        b'{"image": "%s"}' % wrapped.replace("\n", "\\n").encode(), "application/json", LIMITS
    )

    assert upload.images == [RED * 3]


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({"image": "https://example.org/cat.jpg"}, "malformed_request"),
        ({"image": "http://127.0.0.1:8002/"}, "malformed_request"),
        ({"url": "https://example.org/cat.jpg"}, "invalid_parameter"),
        ({"image_url": "https://example.org/cat.jpg", "top_k": 1}, "invalid_parameter"),
    ],
)
def test_parse_body_json_with_a_url_says_that_urls_are_not_fetched(client, document, code):
    answer = client.post("/v1/classify", json=document)

    assert_problem(answer, PROBLEMS[code].status, code)
    assert answer.json()["detail"].startswith("URLs are not fetched; download the picture")


@pytest.mark.parametrize("name", ["cat.jpg", "photographer.png"])
def test_parse_body_picture_without_zeros_and_line_ends_names_the_option_of_curl(client, name):
    urlencoded = {"Content-Type": "application/x-www-form-urlencoded"}
    picture = (ROOT / "examples" / name).read_bytes()

    whole = client.post("/v1/classify", content=picture, headers=urlencoded)
    stripped = picture.translate(None, b"\0\r\n")
    answer = client.post("/v1/classify", content=stripped, headers=urlencoded)

    assert whole.status_code == 200
    assert_problem(answer, 400, "malformed_request")
    assert answer.json()["detail"].endswith("as curl -d does; use curl --data-binary @FILE")


def test_parse_body_with_a_url_opens_no_connection(client):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/cat.jpg"
        statuses = [
            client.post("/v1/classify", json={"image": url}).status_code,
            client.post("/v1/classify", json={"url": url}).status_code,
            client.post("/v1/classify", content=url.encode()).status_code,
            client.post("/v1/classify", data={"url": url}).status_code,
            client.post("/v1/classify", files={"image": url.encode()}).status_code,
        ]

        with pytest.raises(BlockingIOError):
            listener.accept()
    assert statuses == [400, 422, 415, 415, 415]


def test_parse_body_json_with_one_url_answers_the_other_pictures(client):
    images = [base64.b64encode(RED).decode(), "https://example.org/cat.jpg"]

    first, second = client.post("/v1/classify", json={"images": images}).json()["results"]

    assert first["predictions"][0]["label"] == "red"
    assert second["error"]["detail"].startswith("URLs are not fetched")


@pytest.mark.anyio
async def test_parse_body_json_of_too_many_items_refused_before_parsing(monkeypatch):
    monkeypatch.setattr("service.api.payload.from_json", None)

    with pytest.raises(InvalidParameter, match="too many items"):
        await parse_body(b'{"images":[' + b"1," * 1_000_000 + b"1]}", "application/json", LIMITS)


@pytest.mark.anyio
async def test_parse_body_json_of_too_many_images_refused_before_decoding(monkeypatch):
    monkeypatch.setattr("service.api.payload._from_base64", None)

    with pytest.raises(InvalidParameter, match="4 pictures in one request, the limit is 3"):
        await parse_body(b'{"images":["","","",""]}', "application/json", LIMITS)


@pytest.mark.anyio
async def test_read_body_that_stalls_after_a_fast_start_times_out():
    """Bytes received extend the timeout, but not for a client that has gone silent."""
    limits = BodyLimits(max_bytes=10**6, max_images=1, timeout_s=0.01, min_rate_bytes_per_s=1)

    with pytest.raises(RequestTimeout), make_admission(10**6).slot() as slot:
        await read_body(request_of([b"x" * 10**5, None]), slot, limits)


@pytest.mark.parametrize("second", ["gzip", "identity, br"])
def test_check_headers_second_content_encoding_is_checked(client, second):
    encodings = [("Content-Encoding", "identity"), ("Content-Encoding", second)]

    response = client.post("/v1/classify", content=RED, headers=encodings)

    assert_problem(response, 415, "unsupported_media_type")

from __future__ import annotations

import base64
import json

import pytest
from starlette.requests import Request

from convserve.loadtest.bodies import BODIES, Call, Options, table
from convserve.loadtest.bodies.native import Raw
from tests import tinymodel
from tests.pictures import gif, jpeg, png, webp

RED, GREEN, BLUE = (tinymodel.picture(colour) for colour in tinymodel.LABELS)
BROKEN = jpeg()[:200]
NATIVE = ("raw", "multipart", "json")
MANY = ("multipart", "json")
DEFAULT = Options()


def header(call: Call, name: str) -> str:
    (value,) = (value for key, value in call.headers if key == name)
    return value


def send(client, call: Call):
    return client.request(call.method, call.path, headers=dict(call.headers), content=call.content)


async def form_of(call: Call):
    async def receive():
        return {"type": "http.request", "body": call.content, "more_body": False}

    headers = [(key.lower().encode(), value.encode()) for key, value in call.headers]
    return await Request({"type": "http", "method": "POST", "headers": headers}, receive).form()


# The table


def test_table_of_two_kinds_with_one_name_is_refused():
    with pytest.raises(ValueError, match="two body kinds are named raw"):
        table(Raw(), Raw())


@pytest.mark.parametrize("name", BODIES)
def test_table_describes_every_kind_on_one_line(name):
    body = BODIES[name]

    assert body.name == name
    assert body.help.endswith(".")
    assert len(body.help) <= 90


@pytest.mark.parametrize("name", BODIES)
def test_call_without_a_picture_is_refused(name):
    with pytest.raises(ValueError, match="picture"):
        BODIES[name].call([], Options(model="m"))


@pytest.mark.parametrize("name", BODIES)
def test_call_with_two_pictures_is_refused_unless_the_kind_holds_many(name):
    body, options = BODIES[name], Options(model="m")

    if body.many:
        assert len(body.call([RED, BLUE], options).content) > len(RED + BLUE)
    else:
        with pytest.raises(ValueError, match=f"{name} holds one picture, not 2"):
            body.call([RED, BLUE], options)


PATHS = {
    "raw": ("/v1/models/m/classify", "/v1/models/m/versions/2/classify"),
    "multipart": ("/v1/models/m/classify", "/v1/models/m/versions/2/classify"),
    "json": ("/v1/models/m/classify", "/v1/models/m/versions/2/classify"),
    "oip": ("/v2/models/m/infer", "/v2/models/m/versions/2/infer"),
    "oip-binary": ("/v2/models/m/infer", "/v2/models/m/versions/2/infer"),
    "tfserving": ("/v1/models/m:predict", "/v1/models/m/versions/2:predict"),
    "torchserve": ("/predictions/m", "/predictions/m/2"),
}


@pytest.mark.parametrize("name", BODIES)
def test_call_has_the_path_of_model_and_version_or_the_one_given(name):
    call = BODIES[name].call
    given = Options(model="m", version="2", path="/x?top_k=1")

    paths = [
        call([RED], options).path
        for options in (Options(model="m"), Options(model="m", version="2"), given)
    ]

    assert paths == [*PATHS[name], "/x?top_k=1"]


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(path="classify"), "must start with /"),
        (Options(version="2"), "a version needs the name of its model|needs the name of a model"),
    ],
    ids=["path without slash", "version without model"],
)
def test_call_without_a_sure_path_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        BODIES[name].call([RED], options)


@pytest.mark.parametrize("name", [name for name in BODIES if name not in NATIVE])
def test_call_of_other_protocols_needs_a_model(name):
    with pytest.raises(ValueError, match="needs the name of a model, or a path"):
        BODIES[name].call([RED], DEFAULT)


def test_call_escapes_the_name_of_the_model():
    assert Raw().call([RED], Options(model="a/b c?")).path == "/v1/models/a%2Fb%20c%3F/classify"


# What is sent


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (jpeg(), "image/jpeg"),
        (png(), "image/png"),
        (webp(), "image/webp"),
        (gif(), "image/gif"),
        (b"nonsense", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
    ids=["jpeg", "png", "webp", "gif", "nonsense", "empty"],
)
def test_raw_call_is_the_picture_with_its_type(picture, kind):
    call = BODIES["raw"].call([picture], DEFAULT)

    assert call == Call("POST", "/v1/classify", (("Content-Type", kind),), picture)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("field", "read"),
    [(None, "image"), ("images", "images"), ("Bild ä", "Bild ä"), ('a"b\r\n', "a%22b%0D%0A")],
    ids=["default", "given", "not ASCII", "quoted"],
)
async def test_multipart_call_is_a_form_of_files(field, read):
    pictures = [jpeg(), png(), b"nonsense\r\n--", b""]

    form = await form_of(BODIES["multipart"].call(pictures, Options(field=field)))

    files = form.multi_items()
    assert [name for name, _ in files] == [read] * 4
    assert [await file.read() for _, file in files] == pictures
    assert [(file.filename, file.content_type) for _, file in files] == [
        ("picture-1.jpg", "image/jpeg"),
        ("picture-2.png", "image/png"),
        ("picture-3.bin", "application/octet-stream"),
        ("picture-4.bin", "application/octet-stream"),
    ]
    await form.close()


@pytest.mark.anyio
async def test_multipart_call_of_a_picture_with_the_boundary_has_another():
    usual = BODIES["multipart"].call([RED], DEFAULT)
    boundary = header(usual, "Content-Type").partition("boundary=")[2]
    picture = f"\r\n--{boundary}--\r\n".encode()

    form = await form_of(BODIES["multipart"].call([picture, RED], DEFAULT))

    assert [await file.read() for file in form.getlist("image")] == [picture, RED]
    await form.close()


@pytest.mark.parametrize(
    ("pictures", "field", "member", "many"),
    [
        ([RED], None, "image", False),
        ([RED, BLUE], None, "images", True),
        ([RED], "photo", "photo", False),
        ([RED, BLUE], "photos", "photos", True),
    ],
    ids=["one", "several", "one in a field", "several in a field"],
)
def test_json_call_is_an_object_of_base64(pictures, field, member, many):
    call = BODIES["json"].call(pictures, Options(field=field))

    ((name, value),) = json.loads(call.content).items()
    assert header(call, "Content-Type") == "application/json"
    assert (name, isinstance(value, list)) == (member, many)
    assert [
        base64.b64decode(one, validate=True) for one in (value if many else [value])
    ] == pictures


# Against the application itself


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize(
    "options",
    [DEFAULT, Options(model="tiny"), Options(model="tiny", version="2"), Options(field="other")],
    ids=["default", "model", "version", "field"],
)
def test_service_answers_one_picture(client, name, options):
    if name == "json" and options.field:
        options = Options(field="image")  # convserve knows no other member

    response = send(client, BODIES[name].call([GREEN], options))

    assert response.status_code == 200, response.text
    assert BODIES[name].first_classes(response.content) == ["green"]


@pytest.mark.parametrize("name", MANY)
def test_service_answers_many_pictures_in_order(client, name):
    response = send(client, BODIES[name].call([BLUE, RED, GREEN, RED], DEFAULT))

    assert BODIES[name].first_classes(response.content) == ["blue", "red", "green", "red"]


@pytest.mark.parametrize("name", MANY)
def test_service_answer_of_a_broken_picture_is_no_class(client, name):
    response = send(client, BODIES[name].call([BLUE, BROKEN, b"nonsense"], DEFAULT))

    assert response.status_code == 200
    assert BODIES[name].first_classes(response.content) == [
        "blue",
        "!image_truncated",
        "!unsupported_media_type",
    ]


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize(
    "picture", [BROKEN, b"nonsense", b""], ids=["truncated", "nonsense", "empty"]
)
def test_service_refusal_is_no_answer(client, name, picture):
    response = send(client, BODIES[name].call([picture], DEFAULT))

    assert 400 <= response.status_code < 500
    with pytest.raises(ValueError, match="no class"):
        BODIES[name].first_classes(response.content)


def test_service_answer_without_classes_is_refused(client):
    response = send(
        client, BODIES["raw"].call([RED], Options(path="/v1/classify?min_probability=1"))
    )

    assert response.json()["predictions"] == []
    with pytest.raises(ValueError, match="no class"):
        BODIES["raw"].first_classes(response.content)

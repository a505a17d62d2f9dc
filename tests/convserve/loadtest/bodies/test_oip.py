from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest

from convserve.loadtest.bodies import BODIES, Options

PICTURES = [b"\xff\xd8\xff first", b"", b"third"]
MODEL = Options(model="m")
SCORES = [[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]]


def output(
    datatype: str, shape: list[int], data: object, name: str = "output"
) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def read(*outputs: object) -> list[str]:
    document = {"model_name": "m", "outputs": list(outputs)}
    return BODIES["oip"].first_classes(json.dumps(document).encode())


def binary(
    *outputs: tuple[str, list[int], bytes], padding: bytes = b"", tail: bytes = b""
) -> bytes:
    """A response body with binary outputs, whose JSON header has a label that is not ASCII."""
    documents = [
        {
            "name": f"Ausgabe ä {at}",
            "datatype": datatype,
            "shape": shape,
            "parameters": {"binary_data_size": len(blob)},
        }
        for at, (datatype, shape, blob) in enumerate(outputs)
    ]
    header = json.dumps({"model_name": "m", "outputs": documents}, ensure_ascii=False).encode()
    return header + padding + b"".join(blob for _, _, blob in outputs) + tail


def elements(*texts: str) -> bytes:
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(one)) + one for one in encoded)


# What is sent


@pytest.mark.parametrize(("field", "name"), [(None, "image"), ("INPUT__0", "INPUT__0")])
def test_oip_call_is_a_tensor_of_base64(field, name):
    call = BODIES["oip"].call(PICTURES, Options(model="m", field=field))

    (tensor,) = json.loads(call.content)["inputs"]
    assert call.headers == (("Content-Type", "application/json"),)
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == (name, "BYTES", [3])
    assert [base64.b64decode(one, validate=True) for one in tensor["data"]] == PICTURES


@pytest.mark.parametrize(("field", "name"), [(None, "image"), ("INPUT__0", "INPUT__0")])
def test_oip_binary_call_is_a_header_and_elements_with_their_lengths(field, name):
    call = BODIES["oip-binary"].call(PICTURES, Options(model="m", field=field))

    headers = dict(call.headers)
    length = int(headers["Inference-Header-Content-Length"])
    document, blob = json.loads(call.content[:length]), call.content[length:]
    (tensor,) = document["inputs"]
    assert document["parameters"] == {"binary_data_output": True}
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == (name, "BYTES", [3])
    assert tensor["parameters"] == {"binary_data_size": len(blob)}
    assert "data" not in tensor

    found = []
    while blob:
        (size,) = struct.unpack("<I", blob[:4])
        found.append(blob[4 : 4 + size])
        blob = blob[4 + size :]
    assert found == PICTURES


# Answers in JSON


@pytest.mark.parametrize(
    ("answer", "classes"),
    [
        (output("FP32", [2, 3], [0.1, 0.2, 0.7, 0.5, 0.3, 0.2]), ["2", "0"]),
        (output("FP32", [2, 3], SCORES), ["2", "0"]),
        (output("FP64", [2, 3, 1, 1], SCORES[0] + SCORES[1]), ["2", "0"]),
        (output("FP32", [3], [-2.5, 8.0, 1.0]), ["1"]),
        (output("UINT8", [1, 3], [0, 255, 3]), ["1"]),
        (output("INT64", [2], [281, 7]), ["281", "7"]),
        (output("INT64", [2, 1], [281, 7]), ["281", "7"]),
        (output("BYTES", [2], ["cat", "dog"]), ["cat", "dog"]),
        (output("BYTES", [2, 2], ["cat", "dog", "dog", "cat"]), ["cat", "dog"]),
        (output("BYTES", [1], [json.dumps([{"label": "cat", "probability": 0.9}])]), ["cat"]),
        (output("BYTES", [1], ["[unknown]"]), ["[unknown]"]),
        (output("BYTES", [2, 2], ["0.9:5:cat", "0.1:2:a:b", "7:2:a:b", "6e-2:5:cat"]), None),
        (output("BYTES", [2], ["0.9:5:cat", "0.1:2:dog"]), ["cat"]),
        (output("BYTES", [2, 1], ["0.900000:5", "-1.5:2"]), ["5", "2"]),
    ],
    ids=[
        "scores",
        "nested scores",
        "pooled scores",
        "scores without a batch dimension",
        "quantized scores",
        "indices",
        "column of indices",
        "labels",
        "ranked labels",
        "JSON in a string",
        "label in brackets",
        "Triton's ranking",
        "Triton's ranking without a batch dimension",
        "Triton's ranking without labels",
    ],
)
def test_oip_answer_gives_the_first_class_of_each_picture(answer, classes):
    assert read(answer) == (classes or ["cat", "a:b"])


@pytest.mark.parametrize(
    ("outputs", "classes"),
    [
        ([output("FP32", [1, 2], [0.1, 0.9]), output("BYTES", [1], ["dog"])], ["dog"]),
        (
            [
                output("FP32", [1, 4], [9.0, 0, 0, 0], name="embedding"),
                output("FP32", [1, 2], [0.1, 0.9], name="probabilities"),
            ],
            ["1"],
        ),
    ],
    ids=["labels beside scores", "probabilities beside an embedding"],
)
def test_oip_answer_with_two_outputs_uses_the_one_with_classes(outputs, classes):
    assert read(*outputs) == classes


@pytest.mark.parametrize(
    "outputs",
    [
        [],
        [output("FP32", [1, 2], [0.1, 0.9], name="a"), output("FP32", [1, 2], [0.1, 0.9])],
        [output("FP32", [2, 2], [0.1, 0.9])],
        [output("FP32", [1, 2], [0.1, None])],
        [output("FP32", [-1, 2], [0.1, 0.9])],
        [output("FP32", [], [0.5])],
        [output("FP32", [0, 3], [])],
        [output("FP32", [2, 1], [0.1, 0.9])],
        [output("FP32", [1, 2, 2], [0.1, 0.2, 0.3, 0.4])],
        [output("INT64", [1, 2], [3, 7])],
        [output("INT64", [1], [10**30])],
        [output("BOOL", [1], [True])],
        [output("BYTES", [0], [])],
        [output("BYTES", [2], ["cat"])],
        [output("BYTES", [1], [7])],
        [{"name": "output", "datatype": "FP32", "shape": [1, 2]}],
        [{"name": "output", "datatype": "FP32", "data": [0.1, 0.9]}],
        ["output"],
    ],
    ids=[
        "no output",
        "two to choose from",
        "less data than the shape says",
        "null",
        "negative side",
        "scalar",
        "no rows",
        "a score each",
        "feature map",
        "two integers each",
        "integer too large",
        "truth value",
        "no label",
        "fewer labels than the shape says",
        "label is a number",
        "no data",
        "no shape",
        "output is a string",
    ],
)
def test_oip_answer_without_a_sure_class_is_refused(outputs):
    with pytest.raises(ValueError, match=r"output|class|number"):
        read(*outputs)


# Binary answers


@pytest.mark.parametrize("kind", ["oip", "oip-binary"])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
@pytest.mark.parametrize("padding", [b"", b" \n"], ids=["no space", "space"])
def test_oip_binary_scores_give_the_first_class(kind, dtype, padding):
    blob = np.array(SCORES, dtype).tobytes()
    content = binary((f"FP{8 * int(dtype[2])}", [2, 3], blob), padding=padding)

    assert BODIES[kind].first_classes(content) == ["2", "0"]


def test_oip_binary_scores_of_every_byte_are_found_behind_the_header():
    rows = np.arange(2000, dtype="<f4").reshape(2, 1000)
    labels = elements("0.9:5:Wüste", "0.8:2:cat")

    content = binary(("FP32", [2, 1000], rows.tobytes()), ("BYTES", [2, 1], labels))

    assert BODIES["oip-binary"].first_classes(content) == ["Wüste", "cat"]


@pytest.mark.parametrize(
    "content",
    [
        binary(("FP32", [2, 3], bytes(24)), tail=b"more"),
        binary(("FP32", [2, 3], bytes(24)))[:-1],
        binary(("FP32", [2, 3], bytes(20))),
        binary(("FP32", [1, 2], np.array([np.nan, 1], "<f4").tobytes())),
        binary(("BYTES", [1], b"\3\0\0\0ca")),
        binary(("BYTES", [1], b"\3\0")),
        binary(("BYTES", [1], b"\1\0\0\0\xff")),
        binary(("BYTES", [2], elements("cat"))),
        b'{"outputs": [{"name": "a", "parameters": {"binary_data_size": -4}}]}',
        b'{"outputs": [{"name": "a", "parameters": {"binary_data_size": 400}}]}',
    ],
    ids=[
        "bytes left over",
        "cut",
        "size differs from shape",
        "not a number",
        "element cut",
        "length cut",
        "not UTF-8",
        "too few elements",
        "negative size",
        "no bytes",
    ],
)
def test_oip_binary_answer_that_does_not_add_up_is_refused(content):
    with pytest.raises(ValueError, match=r"output|number|utf-8"):
        BODIES["oip-binary"].first_classes(content)

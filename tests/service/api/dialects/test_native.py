from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from contract.versions import sha256
from service.api.payload import READERS
from service.models.engine import Batch, Engine, Run
from tests import tinymodel
from tests.problems import MARKER, assert_problem
from tests.service.running import use_engine

RED, GREEN, BLUE = (tinymodel.picture(colour) for colour in tinymodel.LABELS)
CLASSIFY = "/v1/classify"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def labels(response) -> list[str]:
    """The labels of a response to one picture, most probable first."""
    assert response.status_code == 200, response.text
    return [prediction["label"] for prediction in response.json()["predictions"]]


def top_labels(response) -> list[str]:
    """The first label of each result, or the code of its error."""
    assert response.status_code == 200, response.text
    return [
        result["predictions"][0]["label"] if "predictions" in result else result["error"]["code"]
        for result in response.json()["results"]
    ]


class Recorder(Engine):
    """Records its batches and classifies everything as red."""

    def __init__(self) -> None:
        self.rows: list[Batch] = []

    def run(self, batch: Batch, run: Run) -> NDArray[np.float32]:  # noqa: ARG002
        self.rows.extend(batch)
        return np.tile(np.array([1, 0, 0], np.float32), (len(batch), 1))


def red_left_of_blue(orientation: int) -> bytes:
    """A square JPEG with an EXIF orientation."""
    image = Image.new("RGB", (16, 16), tinymodel.COLOURS["blue"])
    image.paste(tinymodel.COLOURS["red"], (0, 0, 8, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


# One picture as the raw body


@pytest.mark.parametrize("colour", tinymodel.LABELS)
def test_classify_raw_picture_answers_its_label_first(client, colour):
    response = client.post(CLASSIFY, content=tinymodel.picture(colour))

    assert labels(response)[0] == colour
    document = response.json()
    assert list(document) == ["model", "version", "predictions", "request_id"]
    assert (document["model"], document["version"]) == ("tiny", "2")
    assert document["request_id"] == response.headers["x-request-id"]


def test_classify_raw_picture_answers_expected_probabilities(client):
    response = client.post(CLASSIFY, content=RED)

    predictions = response.json()["predictions"]
    expected = tinymodel.expected(tinymodel.COLOURS["red"])
    by_index = {one["index"]: one["probability"] for one in predictions}
    assert by_index == pytest.approx(dict(enumerate(expected)), abs=2e-6)
    assert [list(one) for one in predictions] == [["label", "index", "probability"]] * 3


@pytest.mark.parametrize(
    "declared",
    [
        "image/png",
        "image/jpeg",
        "image/x-unknown",
        "IMAGE/PNG",
        "image/png; charset=utf-8",
        "Application/Octet-Stream;x=y",
        *(name for name in READERS if READERS[name] is READERS["image/*"] and "*" not in name),
    ],
)
def test_classify_raw_picture_of_any_accepted_type_is_read(client, declared):
    response = client.post(CLASSIFY, content=RED, headers={"content-type": declared})

    assert labels(response)[0] == "red"


def test_classify_raw_picture_without_content_type_is_read(client):
    request = client.build_request("POST", CLASSIFY, content=RED)
    request.headers.pop("content-type", None)

    assert labels(client.send(request))[0] == "red"


def test_classify_server_timing_lists_the_stages(client):
    timing = client.post(CLASSIFY, content=RED).headers["server-timing"]

    names = [entry.partition(";")[0] for entry in timing.split(", ")]
    assert names == ["receive", "decode", "preprocess", "queue", "infer", "rank", "batch"]
    assert timing.endswith("batch;desc=1")


@pytest.mark.parametrize(
    ("orientation", "edges"),
    [(1, "left right"), (3, "right left"), (6, "top bottom"), (8, "bottom top")],
    ids=["upright", "upside_down", "clockwise", "anticlockwise"],
)
def test_classify_rotated_photo_is_turned_upright(fresh_client, orientation, edges):
    recorder = Recorder()
    use_engine(fresh_client.app.state.service, recorder)

    fresh_client.post(CLASSIFY, content=red_left_of_blue(orientation))

    (row,) = recorder.rows  # (8, 8, 3)
    mean = {"left": row[:, 0], "right": row[:, -1], "top": row[0], "bottom": row[-1]}
    red, blue = (mean[edge].mean(axis=0) for edge in edges.split())
    assert (red.argmax(), blue.argmax()) == (0, 2)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "unsupported_media_type"),
        (f"no picture {MARKER}".encode(), "unsupported_media_type"),
        (b"\xff\xfe\xfa", "unsupported_media_type"),
    ],
    ids=["empty", "text", "not_utf8"],
)
def test_classify_body_that_is_not_a_picture_refused(client, body, code):
    assert_problem(client.post(CLASSIFY, content=body), 415, code)


def test_classify_truncated_picture_refused(client):
    noise = Image.effect_noise((64, 64), 50)
    buffer = io.BytesIO()
    noise.save(buffer, "JPEG")

    response = client.post(CLASSIFY, content=buffer.getvalue()[:700])

    assert_problem(response, 422, "image_truncated")


@pytest.mark.parametrize(
    "declared",
    ["text/plain", "text/html", "application/xml", "video/mp4", f"application/{MARKER}", "image"],
)
@pytest.mark.parametrize("body", [RED, b"\xff\xfe\xfa\x80"], ids=["picture", "not_utf8"])
def test_classify_unsupported_content_type_refused(client, declared, body):
    response = client.post(CLASSIFY, content=body, headers={"content-type": declared})

    assert_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "identity, gzip", MARKER])
def test_classify_compressed_body_refused(client, encoding):
    response = client.post(CLASSIFY, content=RED, headers={"content-encoding": encoding})

    assert_problem(response, 415, "unsupported_media_type")


def test_classify_identity_encoding_is_read(client):
    response = client.post(CLASSIFY, content=RED, headers={"content-encoding": "identity"})

    assert labels(response)[0] == "red"


# Options


@pytest.mark.parametrize("top_k", [4, 1000, 2**70])
def test_classify_top_k_above_the_number_of_classes_means_all(client, top_k):
    asked = [
        client.post(f"{CLASSIFY}?top_k={top_k}", content=RED),
        client.post(CLASSIFY, files={"image": RED}, data={"top_k": str(top_k)}),
        client.post(CLASSIFY, json={"image": encoded(RED), "top_k": top_k}),
    ]

    for response in asked:
        predictions = response.json()["predictions"]
        assert predictions[0]["label"] == "red"
        assert sorted(one["index"] for one in predictions) == [0, 1, 2]


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_classify_top_k_limits_predictions(client, top_k):
    assert len(labels(client.post(f"{CLASSIFY}?top_k={top_k}", content=RED))) == top_k


@pytest.mark.parametrize(
    "query",
    [
        "top_k=0",
        "top_k=-1",
        "top_k=two",
        "top_k=",
        "top_k=1.5",
        "min_probability=-0.1",
        "min_probability=1.1",
        "min_probability=nan",
        "min_probability=inf",
        f"min_probability={MARKER}",
        f"{MARKER}=1",
        "topk=1",
    ],
)
def test_classify_bad_query_refused(client, query):
    response = client.post(f"{CLASSIFY}?{query}", content=RED)

    assert_problem(response, 422, "invalid_parameter")


def test_classify_bad_query_names_the_parameter(client):
    response = client.post(f"{CLASSIFY}?top_k=0", content=RED)

    assert response.json()["detail"].startswith("top_k: ")


def test_classify_min_probability_drops_less_probable_labels(client):
    assert labels(client.post(f"{CLASSIFY}?min_probability=0.5", content=RED)) == ["red"]


def test_classify_min_probability_of_one_can_drop_all_labels(client):
    assert labels(client.post(f"{CLASSIFY}?min_probability=1", content=RED)) == []


# Any number of labels for a picture


@pytest.fixture
def label_client(make_client, tmp_path):
    """Answers twelve labels, each with the probability 0.9 or 0.2."""
    labels = [{"index": i, "name": f"label {i}"} for i in range(12)]
    golden_file = "golden/red.png"
    top5 = [{"index": i, "label": f"label {i}", "probability": 0.9} for i in range(5)]
    digest = sha256(tinymodel.picture("red"))
    golden = [{"file": golden_file, "sha256": digest, "tolerance": 0.01, "top5": top5}]
    tinymodel.write_version(
        tmp_path,
        graph_file=tinymodel.constant_graph([0.9] * 7 + [0.2] * 5),
        labels=labels,
        golden=golden,
        activation="sigmoid",
    )
    return make_client(models_dir=tmp_path)


def test_classify_with_sigmoid_answers_every_label_with_its_own_probability(label_client):
    document = label_client.post(CLASSIFY, content=RED).json()

    assert document["activation"] == "sigmoid"
    found = [prediction["probability"] for prediction in document["predictions"]]
    assert found == pytest.approx([0.9] * 7 + [0.2] * 5)


def test_classify_with_sigmoid_takes_min_probability_as_the_threshold(label_client):
    response = label_client.post(CLASSIFY, content=RED, params={"min_probability": 0.5})

    assert labels(response) == [f"label {i}" for i in range(7)]


def test_classify_with_sigmoid_and_top_k_answers_that_many(label_client):
    assert len(labels(label_client.post(CLASSIFY, content=RED, params={"top_k": 2}))) == 2


def test_models_description_names_the_activation(label_client, client):
    assert label_client.get("/v1/models/tiny").json()["activation"] == "sigmoid"
    assert client.get("/v1/models/tiny").json()["activation"] == "softmax"


def test_classify_with_softmax_names_no_activation(client):
    assert "activation" not in client.post(CLASSIFY, content=RED).json()


# Models and versions


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/v1/classify", "2"),
        ("/v1/models/tiny/classify", "2"),
        ("/v1/models/tiny/versions/2/classify", "2"),
        ("/v1/models/tiny/versions/1/classify", "1"),
    ],
)
def test_classify_path_chooses_the_version(make_client, path, version):
    response = make_client(repository_file=tinymodel.LOAD_ALL).post(path, content=RED)

    assert labels(response)[0] == "red"
    assert response.json()["version"] == version


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/models/{MARKER}/classify",
        "/v1/models/tiny/versions/1/classify",
        "/v1/models/tiny/versions/999999999999999999/classify",
        f"/v1/models/tiny/versions/{MARKER}/classify",
        f"/v1/models/{MARKER}/versions/1/classify",
    ],
    ids=["name", "version_not_loaded", "huge_version", "alias", "name_and_version"],
)
def test_classify_with_unknown_model_refused(client, path):
    assert_problem(client.post(path, content=RED), 404, "model_not_found")


@pytest.mark.parametrize("version", [MARKER.upper(), "0", "-1", "1.5", "9" * 5000])
def test_classify_version_that_is_no_number_and_no_alias_refused(client, version):
    response = client.post(f"/v1/models/tiny/versions/{version}/classify", content=RED)

    assert_problem(response, 422, "invalid_parameter")
    assert response.json()["detail"] == "version: must be the number of a version, or an alias"


# Multipart


@pytest.mark.parametrize("field", ["image", "file", "anything", "", "top_k"])
def test_classify_multipart_file_under_any_name_is_read(client, field):
    response = client.post(CLASSIFY, files={field: ("photo.png", RED)})

    assert labels(response)[0] == "red"


def test_classify_multipart_many_files_answered_in_order(client):
    files = [("a", ("1.png", RED)), ("b", ("2.png", BLUE)), ("a", ("3.png", GREEN))]

    response = client.post(CLASSIFY, files=files)

    assert top_labels(response) == ["red", "blue", "green"]
    assert list(response.json()) == ["model", "version", "results", "request_id"]


def test_classify_multipart_options_are_fields(client):
    response = client.post(
        CLASSIFY, files={"image": RED}, data={"top_k": "2", "min_probability": "0.01"}
    )

    assert len(labels(response)) == 2


def test_classify_multipart_option_overrides_query(client):
    response = client.post(f"{CLASSIFY}?top_k=3", files={"image": RED}, data={"top_k": "1"})

    assert len(labels(response)) == 1


@pytest.mark.parametrize("value", ["0", "-1", MARKER, "", "\N{SNOWMAN}"])
def test_classify_multipart_bad_option_refused(client, value):
    response = client.post(CLASSIFY, files={"image": RED}, data={"top_k": value})

    assert_problem(response, 422, "invalid_parameter")


def test_classify_multipart_broken_picture_fails_alone(client):
    files = [("a", RED), ("b", f"nothing {MARKER}".encode()), ("c", GREEN)]

    response = client.post(CLASSIFY, files=files)

    assert top_labels(response) == ["red", "unsupported_media_type", "green"]
    error = response.json()["results"][1]["error"]
    assert list(error) == ["status", "code", "title", "detail"]
    assert (error["status"], MARKER in response.text) == (415, False)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_request"),
        (b"--b--\r\n", 422, "invalid_parameter"),
        (b"garbage " + MARKER.encode(), 400, "malformed_request"),
        (b"--b\r\n\r\n\r\n--b--\r\n", 400, "malformed_request"),
        (
            b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n\r\n--b--\r\n",
            415,
            "unsupported_media_type",
        ),
    ],
    ids=["empty", "no_parts", "garbage", "no_name", "empty_part"],
)
def test_classify_multipart_without_picture_refused(client, body, status, code):
    kind = {"content-type": "multipart/form-data; boundary=b"}

    assert_problem(client.post(CLASSIFY, content=body, headers=kind), status, code)


# JSON


def test_classify_json_image_is_read(client):
    assert labels(client.post(CLASSIFY, json={"image": encoded(RED)}))[0] == "red"


def test_classify_json_data_url_is_read(client):
    image = f"data:image/png;base64,{encoded(RED)}"

    assert labels(client.post(CLASSIFY, json={"image": image}))[0] == "red"


def test_classify_json_images_answered_in_order(client):
    response = client.post(CLASSIFY, json={"images": [encoded(RED), encoded(BLUE)]})

    assert top_labels(response) == ["red", "blue"]


def test_classify_json_list_of_one_answered_as_list(client):
    assert top_labels(client.post(CLASSIFY, json={"images": [encoded(RED)]})) == ["red"]


def test_classify_json_options_override_query(client):
    body = {"image": encoded(RED), "top_k": 1, "min_probability": 0}

    assert len(labels(client.post(f"{CLASSIFY}?top_k=3", json=body))) == 1


def test_classify_json_with_parameters_in_any_case_is_read(client):
    body = json.dumps({"image": encoded(RED)}).encode()
    kind = {"content-type": "Application/JSON; charset=utf-8"}

    assert labels(client.post(CLASSIFY, content=body, headers=kind))[0] == "red"


def test_classify_json_large_body_is_read(client):
    body = {"image": encoded(tinymodel.picture("red", 200, "BMP"))}

    assert labels(client.post(CLASSIFY, json=body))[0] == "red"


def test_classify_json_broken_pictures_fail_alone(client):
    images = [encoded(RED), f"%{MARKER}%", 5, "", encoded(b"no picture"), encoded(BLUE)]

    response = client.post(CLASSIFY, json={"images": images})

    assert top_labels(response) == [
        "red",
        "malformed_request",
        "invalid_parameter",
        "unsupported_media_type",
        "unsupported_media_type",
        "blue",
    ]
    assert MARKER not in response.text


BAD_JSON = {
    "not_json": (f"{{{MARKER}", 400, "malformed_request"),
    "empty": ("", 400, "malformed_request"),
    "not_utf8": (b'{"image": "\xff"}', 400, "malformed_request"),
    "nan": ('{"image": NaN}', 400, "malformed_request"),
    "lone_surrogate": ('{"image": "\\ud800"}', 400, "malformed_request"),
    "deep": ("[" * 1_000_000, 400, "malformed_request"),
    "deep_object": ('{"a":' * 100_000, 400, "malformed_request"),
    "many_keys": (json.dumps({str(n): n for n in range(200_000)}), 422, "invalid_parameter"),
    "list": ("[]", 422, "invalid_parameter"),
    "string": (f'"{MARKER}"', 422, "invalid_parameter"),
    "null": ("null", 422, "invalid_parameter"),
    "no_image": ("{}", 422, "invalid_parameter"),
    "no_images": ('{"images": []}', 422, "invalid_parameter"),
    "images_no_list": ('{"images": "x"}', 422, "invalid_parameter"),
    "both": ('{"image": "", "images": []}', 422, "invalid_parameter"),
    "unknown_member": (f'{{"image": "", "{MARKER}": 1}}', 422, "invalid_parameter"),
    "number": ('{"image": 5}', 422, "invalid_parameter"),
    "bad_base64": (f'{{"image": "%{MARKER}"}}', 400, "malformed_request"),
    "base64_of_unicode": ('{"image": "ä"}', 400, "malformed_request"),
    "duplicate_keys": (f'{{"image": "{encoded(RED)}", "image": "!"}}', 400, "malformed_request"),
    "empty_image": ('{"image": ""}', 415, "unsupported_media_type"),
    "empty_data_url": ('{"image": "data:image/png"}', 415, "unsupported_media_type"),
    "top_k_infinite": ('{"image": "", "top_k": 1e400}', 422, "invalid_parameter"),
    "top_k_list": ('{"image": "", "top_k": []}', 422, "invalid_parameter"),
    "top_k_text": (f'{{"image": "", "top_k": "{MARKER}"}}', 422, "invalid_parameter"),
    "min_probability_null": ('{"image": "", "min_probability": null}', 422, "invalid_parameter"),
}


@pytest.mark.parametrize(("body", "status", "code"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_classify_bad_json_refused(client, body, status, code):
    kind = {"content-type": "application/json"}

    assert_problem(client.post(CLASSIFY, content=body, headers=kind), status, code)


# Number of pictures


@pytest.mark.parametrize(("count", "status"), [(31, 200), (32, 200), (33, 422)])
def test_classify_json_image_count_is_limited(client, count, status):
    response = client.post(CLASSIFY, json={"images": [encoded(RED)] * count})

    assert response.status_code == status
    if status == 422:
        assert_problem(response, 422, "invalid_parameter")


@pytest.mark.parametrize(
    ("count", "status", "code"),
    [(33, 422, "invalid_parameter"), (35, 400, "malformed_request")],
    ids=["one_too_many", "more_parts_than_are_parsed"],
)
def test_classify_multipart_image_count_is_limited(client, count, status, code):
    response = client.post(CLASSIFY, files=[("image", RED)] * count)

    assert_problem(response, status, code)


# Refusals under load


def test_classify_with_admission_closed_answers_draining(fresh_client):
    fresh_client.app.state.dependencies.admission.closed = True

    response = fresh_client.post(CLASSIFY, content=RED)

    assert_problem(response, 503, "draining")
    assert (response.headers["retry-after"], response.headers["connection"]) == ("1", "close")


def test_classify_at_the_limit_of_pictures_in_flight_answers_overloaded(make_client):
    client = make_client(max_in_flight=1)
    client.app.state.dependencies.admission.slot().add_images(1)

    response = client.post(CLASSIFY, content=RED)

    assert_problem(response, 503, "overloaded")
    assert 1 <= int(response.headers["retry-after"]) <= 60


def test_classify_more_pictures_than_the_in_flight_limit_is_invalid(make_client):
    """A 503 would invite retries that can never succeed."""
    response = make_client(max_in_flight=1).post(CLASSIFY, files=[("image", RED)] * 2)

    assert_problem(response, 422, "invalid_parameter")


def test_classify_past_its_deadline_answers_504(make_client):
    response = make_client(request_timeout_s=1e-9).post(CLASSIFY, content=RED)

    assert_problem(response, 504, "deadline_exceeded")


def test_classify_errors_leave_nothing_in_flight(fresh_client):
    for body in (RED, b"x", b""):
        fresh_client.post(CLASSIFY, content=body)
    fresh_client.post(CLASSIFY, json={"images": [5] * 40})

    admission = fresh_client.app.state.dependencies.admission
    assert (admission.images, admission.n_bytes) == (0, 0)

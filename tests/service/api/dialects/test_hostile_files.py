"""The table of hostile files, sent in every encoding: always the documented response, never a 5xx."""

from __future__ import annotations

import base64

import pytest

from service.http.problems import PROBLEMS
from tests import tinymodel
from tests.pictures import ACCEPTED, HOSTILE
from tests.problems import assert_problem

CANARY = tinymodel.picture("red")
ENCODINGS = {
    "raw": lambda data: {"content": data, "headers": {"content-type": "image/gif"}},
    "multipart": lambda data: {"files": {"image": ("../../x.svg", data, "text/html")}},
    "base64": lambda data: {"json": {"image": base64.b64encode(data).decode()}},
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", HOSTILE)
def test_classify_hostile_file_answers_as_documented(client, name, encoding):
    file = HOSTILE[name]

    response = client.post("/v1/classify", **ENCODINGS[encoding](file.data))

    if response.status_code == 200:
        assert ACCEPTED in file.allowed
        assert len(response.json()["predictions"]) == 3
    else:
        code = response.json()["code"]
        assert code in file.allowed
        assert_problem(response, PROBLEMS[code].status, code)


def test_classify_hostile_file_does_not_affect_other_pictures(client):
    names = [*HOSTILE]
    for start in range(0, len(names), 15):
        files = [("image", HOSTILE[name].data) for name in names[start : start + 15]]
        response = client.post("/v1/classify?top_k=1", files=[*files, ("image", CANARY)])

        (prediction,) = response.json()["results"][-1]["predictions"]
        assert prediction == {"label": "red", "index": 0, "probability": 0.964663}

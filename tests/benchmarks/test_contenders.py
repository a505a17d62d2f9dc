from __future__ import annotations

import h11
import pytest

from benchmarks.contenders import CONTENDERS, Setting, http_request
from benchmarks.photos import default_graph
from tests import tinymodel

PICTURE = tinymodel.picture("red")
SETTINGS = {
    f"{contender.name}, {setting.name}": setting
    for contender in CONTENDERS
    for setting in contender.settings
}


def parsed(request: bytes) -> tuple[h11.Request, bytes]:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(request)
    head, body, end = (connection.next_event() for _ in range(3))
    assert isinstance(head, h11.Request)
    assert isinstance(body, h11.Data)
    assert isinstance(end, h11.EndOfMessage)
    assert connection.trailing_data == (b"", False)
    return head, bytes(body.data)


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_request_of_every_setting_is_one_whole_request(setting):
    head, body = parsed(http_request(setting, PICTURE, {"X-Request-Timeout-Ms": "500"}))

    headers = dict(head.headers)
    assert (head.method, head.target.decode()) == (b"POST", setting.path)
    assert headers[b"host"] == b"127.0.0.1"
    assert headers[b"x-request-timeout-ms"] == b"500"
    assert (body == PICTURE) == (setting.body == "raw")


def test_request_to_the_service_is_answered(client):
    setting = Setting("", {}, "/v1/classify", body="multipart", field="images")

    head, body = parsed(http_request(setting, PICTURE))

    headers = [(key.decode(), value.decode()) for key, value in head.headers]
    response = client.post(head.target.decode(), content=body, headers=headers)
    assert response.json()["predictions"][0]["label"] == "red"


def test_default_graph_is_committed_with_its_manifest():
    graph = default_graph()

    assert graph.is_file()
    assert graph.with_name("manifest.json").is_file()

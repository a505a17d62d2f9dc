from __future__ import annotations

from dataclasses import replace

import pytest
from fastapi import FastAPI
from pydantic import BaseModel

from contract.versions import sha256
from service.models.repository import Repository
from tests import tinymodel
from tests.problems import MARKER, assert_problem


def test_models_list_names_default_and_details(make_client, tmp_path):
    for name in ("zebra", "alpha"):
        tinymodel.write_version(tmp_path, name)

    (tmp_path / "repository.toml").write_text('default = "zebra"')

    document = make_client(models_dir=tmp_path).get("/v1/models").json()

    assert (document["models"], document["default"]) == (["alpha", "zebra"], "zebra")
    assert [one["name"] for one in document["details"]] == ["alpha", "zebra"]


def test_models_description_has_properties_and_provider(client, models_dir):
    document = client.get("/v1/models/tiny").json()

    manifest = (models_dir / "tiny" / "2" / "manifest.json").read_bytes()
    graph = (models_dir / "tiny" / "2" / "model.onnx").read_bytes()
    assert (document["version"], document["versions"]) == ("2", ["2"])
    assert (document["ready"], document["n_classes"], document["provider"]) == (True, 3, "cpu")
    assert document["sha256"] == sha256(manifest)
    assert document["graph_sha256"] == sha256(graph)
    assert document["golden_difference"] < 1e-5
    assert document["input"]["shape"][1:] == [8, 8, 3]


def test_models_description_of_float32_graph_is_complete(make_client, tmp_path):
    tinymodel.write_version(tmp_path, kind="float32")
    client = make_client(models_dir=tmp_path)

    document = client.get("/v1/models/tiny").json()

    assert (document["input"]["dtype"], document["metrics"]) == ("float32", None)


def test_models_description_of_float16_graph_has_its_accuracy_loss(make_client, tmp_path):
    cost = {"method": "made up", "top1_agreement_percent": 99.9, "max_abs_difference": 0.01}
    tinymodel.write_version(tmp_path, half_precision=cost)

    document = make_client(models_dir=tmp_path).get("/v1/models/tiny").json()

    assert (document["half_precision"], document["quantization"]) == (cost, None)


def test_models_draining_service_is_not_ready(fresh_client):
    fresh_client.app.state.service.begin_drain()

    assert fresh_client.get("/v1/models/tiny").json()["ready"] is False


@pytest.mark.parametrize("version", [1, 2])
def test_models_version_described(make_client, version):
    client = make_client(repository_file=tinymodel.LOAD_ALL)

    document = client.get(f"/v1/models/tiny/versions/{version}").json()

    assert (document["version"], document["versions"]) == (str(version), ["1", "2"])


@pytest.mark.parametrize("path", ["/v1/models/tiny/labels", "/v1/models/tiny/versions/2/labels"])
def test_models_labels_in_output_order(client, path):
    document = client.get(path).json()

    assert (document["model"], document["version"]) == ("tiny", "2")
    assert document["labels"] == [
        {"index": index, "name": name} for index, name in enumerate(tinymodel.LABELS)
    ]


@pytest.mark.parametrize("suffix", ["", "/labels", "/versions/2", "/versions/2/labels"])
def test_models_unknown_name_refused(client, suffix):
    assert_problem(client.get(f"/v1/models/{MARKER}{suffix}"), 404, "model_not_found")


@pytest.mark.parametrize("suffix", ["", "/labels"])
def test_models_unknown_version_refusal_lists_the_served_ones(client, suffix):
    response = client.get(f"/v1/models/tiny/versions/1{suffix}")

    assert_problem(response, 404, "model_not_found")
    assert response.json()["detail"].endswith("the loaded versions are: 2")


@pytest.mark.parametrize("version", [MARKER.upper(), "0"])
def test_models_version_that_is_no_number_and_no_alias_refused(client, version):
    response = client.get(f"/v1/models/tiny/versions/{version}")

    assert_problem(response, 422, "invalid_parameter")


# Documents are written once

PATHS = ["/v1/models", "/v1/models/tiny", "/v1/models/tiny/labels", "/openapi.json"]


@pytest.mark.parametrize("path", [*PATHS, "/v1/models/tiny/versions/2"])
def test_models_documents_are_written_once(client, path, monkeypatch):
    before = client.get(path)

    for writer in (BaseModel, FastAPI):
        monkeypatch.delattr(writer, "model_dump_json", raising=False)
        monkeypatch.delattr(writer, "openapi", raising=False)

    assert client.get(path).content == before.content


def test_models_documents_follow_the_repository(fresh_client):
    before = fresh_client.get("/v1/models/tiny").json()["versions"]
    service = fresh_client.app.state.service
    old = service.repository.get("tiny")
    new = replace(old, manifest=old.manifest.model_copy(update={"version": 3}))

    fresh_client.portal.call(service.adopt, Repository([old, new]))

    answers = [fresh_client.get(path).json() for path in PATHS[:3]]
    assert before == ["2"]
    assert answers[0]["status"][0]["loaded"] == ["2", "3"]
    assert (answers[1]["versions"], answers[1]["version"]) == (["2", "3"], "3")
    assert answers[2]["version"] == "3"


def test_models_documents_follow_readiness(fresh_client):
    def ready() -> list[bool]:
        listed = fresh_client.get("/v1/models").json()["details"][0]["ready"]
        return [listed, fresh_client.get("/v1/models/tiny").json()["ready"]]

    before = ready()
    fresh_client.app.state.service.begin_drain()

    assert (before, ready()) == ([True, True], [False, False])

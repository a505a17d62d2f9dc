"""A version that is wrong in any way never answers, takes nothing away, and is visible with its reason."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from contract.manifest import parse_manifest
from contract.versions import manifest_files, seal, sha256
from service.models.repository import EngineConfig
from service.models.selection import RepositoryConfig, load_repository
from tests import tinymodel
from tests.pictures import flip_bit

RED = tinymodel.picture("red")
Damage = Callable[[Path], None]


def flip(name: str) -> Damage:
    def damage(folder: Path) -> None:
        file = next(folder.glob(name))
        file.write_bytes(flip_bit(file.read_bytes(), 321))

    return damage


def text_of_manifest(change: Callable[[str], str]) -> Damage:
    """Changes the manifest's text, and seals it again."""

    def damage(folder: Path) -> None:
        text = change((folder / "manifest.json").read_text()).encode()
        (folder / "manifest.json").write_bytes(text)
        (folder / "manifest.sha256").write_bytes(seal(text))

    return damage


def manifest(**members: Any) -> Damage:
    """Changes members of the manifest, and seals it again."""
    return text_of_manifest(lambda text: json.dumps({**json.loads(text), **members}))


def graph(data: bytes | Callable[[bytes], bytes]) -> Damage:
    """Publishes another graph, with the right digests."""

    def damage(folder: Path) -> None:
        changed = data if isinstance(data, bytes) else data((folder / "model.onnx").read_bytes())
        (folder / "model.onnx").write_bytes(changed)
        document = json.loads((folder / "manifest.json").read_text())
        document["graph"]["sha256"] = document["files"]["model.onnx"] = sha256(changed)
        for path, content in manifest_files(parse_manifest(json.dumps(document))).items():
            (folder / path).write_bytes(content)

    return damage


def edit_graph(change: Callable[[onnx.ModelProto], None]) -> Damage:
    def edited(data: bytes) -> bytes:
        model = onnx.load_from_string(data)
        change(model)
        return bytes(model.SerializeToString())

    return graph(edited)


def sparse(name: str, size: int) -> Damage:
    return lambda folder: os.truncate(folder / name, size)


def remove(name: str) -> Damage:
    return lambda folder: next(folder.glob(name)).unlink()


def link(name: str) -> Damage:
    def damage(folder: Path) -> None:
        target = folder.parent.parent / "elsewhere"
        (folder / name).rename(target)
        (folder / name).symlink_to(target)

    return damage


def link_folder(folder: Path) -> None:
    target = folder.parent.parent / ".elsewhere"
    folder.rename(target)
    folder.symlink_to(target)


def folder_for_graph(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()


def divide_by_zero(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("nothing", TensorProto.FLOAT, [], [0.0]))
    model.graph.node[-2].output[0] = "finite"
    model.graph.node.insert(-1, helper.make_node("Sub", ["finite", "finite"], ["zeros"]))
    model.graph.node.insert(-1, helper.make_node("Div", ["zeros", "nothing"], ["logits"]))


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[-2].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def other_answers(model: onnx.ModelProto) -> None:
    (scale,) = [one for one in model.graph.initializer if one.name == "scale"]
    scale.CopyFrom(helper.make_tensor("scale", TensorProto.FLOAT, [], [1e-3]))


def external_data(model: onnx.ModelProto) -> None:
    (scale,) = [one for one in model.graph.initializer if one.name == "scale"]
    scale.ClearField("float_data")
    scale.data_location = TensorProto.EXTERNAL
    scale.external_data.add(key="location", value="../../../../etc/passwd")


def labels(*names: str) -> Damage:
    return manifest(labels=[{"index": index, "name": name} for index, name in enumerate(names)])


DAMAGES: dict[str, tuple[Damage, str]] = {
    "graph_flipped_bit": (flip("model.onnx"), "model.onnx is not the file that was published"),
    "golden_flipped_bit": (flip("golden/*"), "is not the file that was published"),
    "manifest_flipped_bit": (flip("manifest.json"), "not the file that was published"),
    "seal_missing": (remove("manifest.sha256"), "manifest.sha256 is missing"),
    "seal_garbled": (flip("manifest.sha256"), "not the file that was published"),
    "half_copy_without_graph": (remove("model.onnx"), "model.onnx is missing"),
    "half_copy_without_golden": (remove("golden/*"), "is missing"),
    "slow_copy_of_graph": (sparse("model.onnx", 100), "model.onnx is not the file"),
    "graph_empty": (sparse("model.onnx", 0), "model.onnx is not the file"),
    "graph_of_32_gb": (sparse("model.onnx", 32 << 30), "the limit is 2,147,483,648"),
    "manifest_of_1_gb": (sparse("manifest.json", 1 << 30), "the limit is 16,777,216"),
    "graph_is_a_link": (link("model.onnx"), "model.onnx is a link"),
    "folder_is_a_link": (link_folder, "the folder is a link"),
    "graph_is_a_folder": (folder_for_graph, "model.onnx is missing or unreadable"),
    "file_not_listed": (lambda folder: (folder / "x").touch(), "x is not listed"),
    "pipe": (lambda folder: os.mkfifo(folder / "pipe"), "pipe is a link or a special file"),
    "labels_short": (labels("red", "green"), "label"),
    "label_twice": (labels("red", "green", "green"), "occurs more than once"),
    "labels_doubled": (labels(*tinymodel.LABELS, "x", "y", "z"), "6 labels"),
    "labels_with_a_gap": (manifest(labels=[{"index": 1, "name": "x"}]), "label"),
    "manifest_not_json": (text_of_manifest(lambda text: text[:-20]), "manifest.json"),
    "manifest_deeply_nested": (text_of_manifest(lambda _: "[" * 100_000), "manifest.json"),
    "manifest_of_the_future": (manifest(schema_version=99), "schema_version"),
    "manifest_of_another_name": (manifest(name="other"), "the manifest describes other/2"),
    "manifest_name_in_other_case": (manifest(name="Tiny"), "the manifest describes Tiny/2"),
    "manifest_of_another_version": (manifest(version=3), "the manifest describes tiny/3"),
    "manifest_unknown_field": (manifest(colour="red"), "colour"),
    "manifest_path_outside": (manifest(files={"../x": "0" * 64}), "relative path"),
    "graph_not_onnx": (graph(b"broken"), "tiny/2"),
    "graph_foreign_operator": (edit_graph(foreign_operator), "tiny/2"),
    "graph_not_a_number": (edit_graph(divide_by_zero), "tiny/2"),
    "graph_other_answers": (edit_graph(other_answers), "golden"),
    "graph_external_data": (edit_graph(external_data), "tiny/2"),
    "graph_of_float_input": (graph(tinymodel.graph("float32")), "tiny/2"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_bad_version_never_answers_and_is_visible(make_client, tmp_path, name):
    damage, reason = DAMAGES[name]
    tinymodel.write_version(tmp_path)
    client = make_client(models_dir=tmp_path, provider="cpu", models_poll_s=0)
    service = client.app.state.service
    tinymodel.write_version(tmp_path, version=2)
    damage(tmp_path / "tiny" / "2")

    client.portal.call(service.watcher.poll)

    answer = client.post("/v1/classify", content=RED).json()
    listed = client.get("/v1/models").json()
    metrics = client.get("/metrics").text
    assert (answer["version"], answer["predictions"][0]["label"]) == ("1", "red")
    assert client.get("/readyz").status_code == 200
    assert reason in listed["status"][0]["failed"]["2"]
    assert listed["problems"] == list(listed["status"][0]["failed"].values())
    assert "convserve_adoptions_failing 1.0" in metrics
    assert 'convserve_adoptions_total{outcome="failed"} 1.0' in metrics

    restarted = load_repository(RepositoryConfig(tmp_path, EngineConfig("cpu")))
    assert restarted.get().key == ("tiny", 1)
    assert restarted.problems == listed["problems"]


def test_bad_version_that_is_removed_is_forgotten(make_client, tmp_path):
    tinymodel.write_version(tmp_path)
    client = make_client(models_dir=tmp_path, provider="cpu", models_poll_s=0)
    service = client.app.state.service
    tinymodel.write_version(tmp_path, version=2)
    flip("model.onnx")(tmp_path / "tiny" / "2")
    client.portal.call(service.watcher.poll)
    shutil.rmtree(tmp_path / "tiny" / "2")

    client.portal.call(service.watcher.poll)

    assert client.get("/v1/models").json()["problems"] == []
    assert "convserve_adoptions_failing 0.0" in client.get("/metrics").text

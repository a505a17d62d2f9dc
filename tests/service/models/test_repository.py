from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from contract import preprocessing
from contract.arrays import pack_arrays
from contract.errors import (
    GoldenMismatch,
    GraphMismatch,
    ManifestInvalid,
    ModelError,
    VersionCorrupt,
    VersionTooCostly,
)
from contract.manifest import parse_manifest
from contract.versions import manifest_files, read_version, seal, sha256
from service.errors import ModelNotFound, ProviderUnavailable
from service.models import repository
from service.models.repository import (
    EngineConfig,
    Repository,
    load_version,
    replay_golden,
    resolve_models_dir,
)
from tests import tinymodel

CONFIG = EngineConfig("cpu", max_batch_size=4)


def published(
    models_dir: Path, *, name: str = "tiny", graph: bytes | None = None, **changes: Any
) -> None:
    """Writes tiny/1 with another graph and matching digests, or with other manifest fields."""
    manifest = tinymodel.write_version(models_dir, name)
    folder = models_dir / name / "1"
    document = manifest.model_dump(mode="json")
    if graph is not None:
        (folder / "model.onnx").write_bytes(graph)
        document["graph"]["sha256"] = document["files"]["model.onnx"] = sha256(graph)
    document.update(changes)
    for path, data in manifest_files(parse_manifest(json.dumps(document))).items():
        (folder / path).write_bytes(data)


def fake_version(name: str, number: int) -> Any:
    return SimpleNamespace(key=(name, number), manifest=SimpleNamespace(name=name, version=number))


# Lookup


def test_repository_get_without_number_is_the_newest():
    found = Repository([fake_version("a", 2), fake_version("a", 10), fake_version("a", 9)])

    assert found.get("a").key == ("a", 10)
    assert list(found.models["a"]) == [2, 9, 10]
    assert found.get("a", 9).key == ("a", 9)


def test_repository_of_one_model_has_it_as_the_default():
    found = Repository([fake_version("a", 1)])

    assert (found.default_name, found.get().key) == ("a", ("a", 1))


def test_repository_without_a_default_refused_with_the_names():
    found = Repository([fake_version("b", 1), fake_version("a", 1)])

    with pytest.raises(ModelNotFound, match=r"no default model is set.*The models are: a, b"):
        found.get()


@pytest.mark.parametrize(("name", "number"), [("b", None), ("a", 2)])
def test_repository_get_unknown_refused(name, number):
    with pytest.raises(ModelNotFound):
        Repository([fake_version("a", 1)]).get(name, number)


# Location


def test_models_dir_that_is_configured_wins_even_if_empty(tmp_path):
    assert resolve_models_dir(tmp_path / "x", tmp_path) == tmp_path / "x"


@pytest.mark.parametrize("place", [0, 1, 2], ids=["working_dir", "bundled", "source_tree"])
def test_models_dir_is_the_first_candidate_that_holds_a_version(tmp_path, monkeypatch, place):
    monkeypatch.setattr(repository, "_SOURCE", tmp_path / "src" / "service")
    places = [tmp_path / "cwd", tmp_path / "src" / "service" / "bundled_models", tmp_path / "src"]
    candidates = [places[0] / "models", places[1], places[2] / "models"]
    candidates[0].mkdir(parents=True)
    for candidate in candidates[place:]:
        tinymodel.write_version(candidate)

    assert resolve_models_dir(None, tmp_path / "cwd") == candidates[place]


@pytest.mark.parametrize("content", ["models", "models/tiny", "models/repository.toml"])
def test_models_dir_that_cannot_be_read_or_is_configured_is_not_passed_over(
    tmp_path, monkeypatch, content
):
    monkeypatch.setattr(repository, "_SOURCE", tmp_path / "src" / "service")
    tinymodel.write_version(tmp_path / "src" / "models")
    (tmp_path / content).parent.mkdir(exist_ok=True)
    (tmp_path / content).symlink_to(tmp_path / content)  # cannot be followed

    assert resolve_models_dir(None, tmp_path) == tmp_path / "models"


def test_models_dir_without_any_version_is_that_of_the_working_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(repository, "_SOURCE", tmp_path / "src" / "service")

    assert resolve_models_dir(None, tmp_path) == tmp_path / "models"


# Loading


def test_load_version_reports_and_logs_what_it_verified(tmp_path, caplog):
    tinymodel.write_version(tmp_path)
    with caplog.at_level("INFO"):
        loaded = load_version(tmp_path, "tiny", 1, CONFIG)

    assert (loaded.provider, loaded.max_batch_size, loaded.key) == ("cpu", 4, ("tiny", 1))
    assert loaded.golden_difference < 1e-5
    (line,) = [record for record in caplog.records if record.message == "loaded"]
    assert (line.model, line.version, line.provider) == ("tiny", 1, "cpu")


def test_load_version_with_a_manifest_of_version_1_is_loaded():
    folder = Path(__file__).parents[2] / "contract" / "manifest_v1"

    loaded = load_version(folder, "digits", 1, CONFIG)

    assert loaded.manifest.n_classes == 10
    assert loaded.golden_difference < 1e-3


def test_load_version_with_a_classifier_of_other_shapes_refused_by_name(tmp_path):
    manifest = tinymodel.write_version(tmp_path)
    document = manifest.model_dump(mode="json")
    shapes = {"weight": (2, 6), "bias": (2,)}
    data = pack_arrays({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    (tmp_path / "tiny" / "1" / "classifier.npz").write_bytes(data)
    document["classifier"] = {"file": "classifier.npz", "n_features": 6}
    document["files"]["classifier.npz"] = sha256(data)
    features = {"name": "features", "kind": "feature_map", "layout": "NHWC"}
    document["graph"]["outputs"].append(features)
    for file, content in manifest_files(parse_manifest(json.dumps(document))).items():
        (tmp_path / "tiny" / "1" / file).write_bytes(content)

    with pytest.raises(VersionCorrupt, match=r"tiny/1: classifier\.npz: the shapes are \(2, 6\)"):
        load_version(tmp_path, "tiny", 1, CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 3}, "schema_version is 3, .* upgrade convserve"),
        ({"heatmaps": {}}, "heatmaps: unknown field; .* upgrade convserve"),
        (
            {"calibration": {"unlike": {"kind": "oracle"}}},
            "calibration.unlike: unknown kind, .* upgrade convserve",
        ),
    ],
    ids=["schema-version", "field", "kind"],
)
def test_load_version_of_a_newer_convserve_refused_with_what_to_do(tmp_path, changes, message):
    tinymodel.write_version(tmp_path)
    folder = tmp_path / "tiny" / "1"
    text = json.dumps({**json.loads((folder / "manifest.json").read_bytes()), **changes}).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "manifest.sha256").write_bytes(seal(text))

    with pytest.raises(ManifestInvalid, match=f"tiny/1: manifest.json: {message}"):
        load_version(tmp_path, "tiny", 1, CONFIG)


def test_load_version_of_fixed_batch_runs_one_picture_at_a_time(tmp_path):
    tinymodel.write_version(tmp_path, batch=1)

    assert load_version(tmp_path, "tiny", 1, CONFIG).max_batch_size == 1


def test_load_version_of_another_manifest_than_asked_for_refused_unopened(tmp_path, monkeypatch):
    tinymodel.write_version(tmp_path)
    monkeypatch.setattr(repository, "open_session", None)  # cannot be called

    with pytest.raises(VersionCorrupt, match="tiny/1: it was replaced"):
        load_version(tmp_path, "tiny", 1, CONFIG, manifest_sha256="0" * 64)


def test_load_version_without_memory_to_read_it_is_a_model_error(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(repository, "read_version", fail)

    with pytest.raises(VersionTooCostly, match="tiny/1: there is no memory"):
        load_version(tmp_path, "tiny", 1, CONFIG)


def test_load_version_with_changed_file_refused_by_name(tmp_path):
    tinymodel.write_version(tmp_path)
    (tmp_path / "tiny" / "1" / "model.onnx").write_bytes(tinymodel.graph() + b"\0")

    with pytest.raises(VersionCorrupt, match=r"tiny/1: model\.onnx"):
        load_version(tmp_path, "tiny", 1, CONFIG)


@pytest.mark.parametrize("position", range(0, 1000, 97))
def test_load_version_with_one_flipped_bit_refused(tmp_path, position):
    tinymodel.write_version(tmp_path)
    for path in (tmp_path / "tiny" / "1").rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            data = bytearray(path.read_bytes())
            data[position % len(data)] ^= 1
            path.write_bytes(data)
            break

    with pytest.raises(VersionCorrupt, match="tiny/1"):
        load_version(tmp_path, "tiny", 1, CONFIG)


def test_load_version_with_unreadable_graph_refused_by_name(tmp_path):
    published(tmp_path, graph=b"no graph")

    with pytest.raises(GraphMismatch, match="tiny/1: onnxruntime cannot load the graph"):
        load_version(tmp_path, "tiny", 1, CONFIG)


def test_load_version_with_wrong_golden_answer_refused_by_name(tmp_path):
    manifest = tinymodel.write_version(tmp_path / "source")
    golden = manifest.model_dump(mode="json")["golden"]
    golden[1]["top5"][0]["probability"] -= 0.01
    published(tmp_path / "models", golden=golden)

    with pytest.raises(GoldenMismatch, match=r"tiny/1: golden/green\.png: .* differs by 0\.0100"):
        load_version(tmp_path / "models", "tiny", 1, CONFIG)


def test_load_version_with_unreadable_golden_picture_refused_by_name(tmp_path):
    manifest = tinymodel.write_version(tmp_path)
    path = tmp_path / "tiny" / "1" / "golden" / "red.png"
    path.write_bytes(b"no picture")
    document = manifest.model_dump(mode="json")
    document["golden"][0]["sha256"] = document["files"]["golden/red.png"] = sha256(b"no picture")
    for file, data in manifest_files(parse_manifest(json.dumps(document))).items():
        (tmp_path / "tiny" / "1" / file).write_bytes(data)

    with pytest.raises(GoldenMismatch, match=r"tiny/1: golden/red\.png: the bytes are not"):
        load_version(tmp_path, "tiny", 1, CONFIG)


@pytest.mark.parametrize("provider", ["cuda"])
def test_load_version_on_missing_provider_refused(tmp_path, provider):
    tinymodel.write_version(tmp_path)

    with pytest.raises(ProviderUnavailable, match=provider):
        load_version(tmp_path, "tiny", 1, EngineConfig(provider))


NODES = {
    # Square roots of negative numbers.
    "not_a_number": (
        [
            helper.make_node("Neg", ["before"], ["n"]),
            helper.make_node("Sqrt", ["n"], ["probabilities"]),
        ],
        ["N", 3],
    ),
    "fewer_classes": (
        [helper.make_node("Slice", ["before", "first", "one", "one"], ["probabilities"])],
        ["N", "C"],
    ),
    "one_row": (
        [helper.make_node("Slice", ["before", "first", "one", "first"], ["probabilities"])],
        ["N", 3],
    ),
    "fixed_inside": (
        [helper.make_node("Reshape", ["before", "shape"], ["probabilities"])],
        ["M", 3],
    ),
    "flat": ([helper.make_node("Reshape", ["before", "minus"], ["probabilities"])], ["M"]),
}


def wrapped_graph(nodes: list[onnx.NodeProto], sides: list[int | str]) -> bytes:
    """The tiny graph with more nodes after its softmax."""
    model = onnx.load_from_string(tinymodel.graph())
    for node in model.graph.node:
        node.output[:] = ["before" if name == "probabilities" else name for name in node.output]
    model.graph.node.extend(nodes)

    numbers = {"first": [0], "one": [1], "shape": [1, 3], "minus": [-1]}
    for name, values in numbers.items():
        model.graph.initializer.append(
            helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        )

    del model.graph.output[:]
    model.graph.output.append(
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, sides)
    )
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(("nodes", "sides"), NODES.values(), ids=NODES.keys())
def test_load_version_whose_graph_returns_nonsense_refused_by_name(tmp_path, nodes, sides):
    published(tmp_path, graph=wrapped_graph(nodes, sides))

    with pytest.raises((ModelError, ProviderUnavailable), match="tiny/1: "):
        load_version(tmp_path, "tiny", 1, CONFIG)


def test_replay_golden_runs_singly_and_as_a_full_batch(models_dir):
    version = read_version(models_dir, "tiny", 1)
    sizes = []

    def run(batch, run_options):
        sizes.append((len(batch), run_options.all_cores))
        colours = batch.reshape(len(batch), -1, 3).mean(axis=1)  # (N, 3)
        return np.array([tinymodel.expected(colour) for colour in colours], np.float32)

    difference = replay_golden(version, run, 7)

    assert sizes == [(1, True), (1, True), (1, True), (7, False)]
    assert difference < 1e-6


def test_replay_golden_finds_an_error_of_the_full_batch_only(models_dir):
    version = read_version(models_dir, "tiny", 1)

    def run(batch, _run_options):
        colours = batch.reshape(len(batch), -1, 3).mean(axis=1)
        rows = np.array([tinymodel.expected(colour) for colour in colours], np.float32)
        return rows if len(rows) == 1 else rows[::-1]

    with pytest.raises(GoldenMismatch):
        replay_golden(version, run, 4)


def _red_is_mean_of_red(batch, _run_options):
    colours = batch.reshape(len(batch), -1, 3).mean(axis=1)
    return np.array([tinymodel.expected(colour) for colour in colours], np.float32)


def _requests_are_darker(monkeypatch, by):
    whole = preprocessing.read_pixels
    monkeypatch.setattr(
        preprocessing, "read_pixels", lambda *args: (whole(*args) // by).astype(np.uint8)
    )


def test_replay_golden_also_runs_the_pixels_of_a_request(models_dir, monkeypatch):
    version = read_version(models_dir, "tiny", 1)
    _requests_are_darker(monkeypatch, by=1.05)  # 255 becomes 242
    sizes = []

    def run(batch, run_options):
        sizes.append(len(batch))
        return _red_is_mean_of_red(batch, run_options)

    difference = replay_golden(version, run, 8)

    assert sizes == [1] * 6 + [8]
    exact, served = (tinymodel.expected((value, 0, 0)) for value in (255, 242))
    assert difference == pytest.approx(exact[0] - served[0], abs=1e-6)


@pytest.mark.parametrize(("stated", "by"), [(0.002, 1.05), (None, 1.9)])
def test_load_version_whose_served_answer_differs_refused_by_name(
    tmp_path, monkeypatch, stated, by
):
    manifest = tinymodel.write_version(tmp_path / "source")
    golden = manifest.model_dump(mode="json")["golden"]
    published(
        tmp_path / "models", golden=[{**example, "served_tolerance": stated} for example in golden]
    )
    monkeypatch.setattr(preprocessing, "MAX_SHORTCUT_DIFFERENCE", 255)
    _requests_are_darker(monkeypatch, by)

    with pytest.raises(GoldenMismatch, match=r"tiny/1: golden/red\.png: .* as a request"):
        load_version(tmp_path / "models", "tiny", 1, CONFIG)


def test_load_version_names_the_picture_whose_pixels_differ(tmp_path, monkeypatch):
    tinymodel.write_version(tmp_path)
    _requests_are_darker(monkeypatch, by=2)

    with pytest.raises(GoldenMismatch, match=r"tiny/1: golden/red\.png: prepared pixels differ"):
        load_version(tmp_path, "tiny", 1, CONFIG)

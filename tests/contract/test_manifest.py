import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import contract.manifest
from contract.errors import ManifestInvalid
from contract.manifest import Manifest, dump_manifest, parse_manifest
from tests.contract.manifests import changed, fields, sha


def parse(data):
    return parse_manifest(json.dumps(data))


def test_manifest_round_trip_is_equal():
    manifest = parse(fields())

    assert parse_manifest(dump_manifest(manifest)) == manifest


def test_manifest_properties():
    manifest = parse(fields())

    assert manifest.n_classes == 3
    assert manifest.graph.fixed_batch_size is None
    assert manifest.graph.scores.name == "probabilities"
    assert manifest.calibration.temperature == 1.0


def test_manifest_is_frozen():
    manifest = parse(fields())

    with pytest.raises(ValueError, match="frozen"):
        manifest.name = "other"


def test_manifest_schema_file_is_the_models_schema():
    path = Path(contract.manifest.__file__).with_name("manifest.schema.json")

    assert json.loads(path.read_text()) == Manifest.model_json_schema()


INT8 = {
    "method": "made up",
    "calibration_data": "pictures",
    "n_calibration_images": 3,
    "top1_agreement_percent": 97.0,
}
HALF = {"method": "made up", "top1_agreement_percent": 99.9, "max_abs_difference": 0.01}


@pytest.mark.parametrize(
    ("members", "precision"),
    [({}, "fp32"), ({"quantization": INT8}, "int8"), ({"half_precision": HALF}, "fp16")],
    ids=["float", "int8", "float16"],
)
def test_manifest_has_its_precision(members, precision):
    assert parse(fields(**members)).precision == precision


def test_manifest_of_two_precisions_is_refused():
    with pytest.raises(ManifestInvalid, match="cannot both be set"):
        parse(fields(quantization=INT8, half_precision=HALF))


def test_manifest_outputs_prefer_probabilities_to_logits():
    outputs = [{"name": "a", "kind": "logits"}, {"name": "b", "kind": "probabilities"}]

    assert parse(changed("graph.outputs", outputs)).graph.scores.name == "b"
    assert parse(changed("graph.outputs", outputs[:1])).graph.scores.name == "a"


def test_manifest_fixed_batch_and_channels_first_are_accepted():
    graph_input = {"name": "x", "dtype": "uint8", "layout": "NCHW", "shape": [1, 3, 32, 32]}

    manifest = parse(changed("graph.input", graph_input))

    assert manifest.graph.fixed_batch_size == 1


def test_manifest_same_name_with_other_synset_is_accepted():
    labels = [
        {"index": 0, "name": "crane", "synset": "n02012849"},
        {"index": 1, "name": "crane", "synset": "n03126707"},
        {"index": 2, "name": "heron"},
    ]

    assert parse(relabelled(labels)).n_classes == 3


def test_manifest_golden_label_of_another_class_is_refused():
    with pytest.raises(ManifestInvalid, match="which is not its label"):
        parse(changed("golden.0.top5.0.label", "somebody else"))


@pytest.mark.parametrize(
    "path",
    [
        "surprise",
        "graph.surprise",
        "graph.input.surprise",
        "preprocessing.surprise",
        "labels.0.surprise",
        "golden.0.surprise",
        "golden.0.top5.0.surprise",
        "provenance.surprise",
    ],
)
def test_manifest_unknown_field_is_refused(path):
    with pytest.raises(ManifestInvalid, match=r"surprise: unknown field; .*upgrade convserve"):
        parse(changed(path, 1))


def test_manifest_unknown_field_of_half_precision_is_refused():
    with pytest.raises(ManifestInvalid, match=r"half_precision\.surprise: unknown field"):
        parse(fields(half_precision={**HALF, "surprise": 1}))


@pytest.mark.parametrize("field", [f for f in fields() if f != "schema_version"])
def test_manifest_missing_field_is_refused_by_name(field):
    data = fields()
    del data[field]

    with pytest.raises(ManifestInvalid, match=rf"{field}: Field required"):
        parse(data)


TRAVERSALS = {
    "parent": "../model.onnx",
    "parent-inside": "golden/../../model.onnx",
    "absolute": "/etc/passwd",
    "dot": "./model.onnx",
    "double-slash": "golden//a.png",
    "trailing-slash": "golden/",
    "backslash": "..\\model.onnx",
    "drive": "C:model.onnx",
    "nul": "model.onnx\0",
    "newline": "model\n.onnx",
    "empty": "",
    "only-parent": "..",
    "long": "a" * 201,
}


@pytest.mark.parametrize("path", TRAVERSALS.values(), ids=TRAVERSALS)
def test_manifest_path_outside_the_folder_is_refused(path):
    with pytest.raises(ManifestInvalid, match=r"graph\.file"):
        parse(changed("graph.file", path))
    with pytest.raises(ManifestInvalid, match="files"):
        parse(changed("files", {**fields()["files"], path: "0" * 64}))


@pytest.mark.parametrize(
    "name",
    ["", ".hidden", "../up", "a/b", "a b", "-dash", "a" * 65, "a\n", "ä"],
    ids=["empty", "dot", "up", "slash", "space", "dash", "long", "newline", "umlaut"],
)
def test_manifest_name_that_is_not_a_folder_name_is_refused(name):
    with pytest.raises(ManifestInvalid, match="name"):
        parse(fields(name=name))


def labels(*names):
    return [{"index": i, "name": name} for i, name in enumerate(names)]


REFUSALS = {
    "feature-map-layout": (
        "graph.outputs",
        [{"name": "a", "kind": "logits"}, {"name": "b", "kind": "feature_map"}],
        "required for a feature_map",
    ),
    "logits-layout": (
        "graph.outputs",
        [{"name": "a", "kind": "logits", "layout": "NCHW"}],
        "only for a feature_map",
    ),
    "activation": ("activation", "step", "activation: .*softmax.*sigmoid"),
    "version-zero": ("version", 0, "version"),
    "created-at": ("created_at", "yesterday", "created_at"),
    "digest-short": ("graph.sha256", "abc", "graph.sha256"),
    "digest-upper-case": ("graph.sha256", "A" * 64, "graph.sha256"),
    "opset": ("graph.opset", 6, "graph.opset"),
    "dtype": ("graph.input.dtype", "float16", "graph.input.dtype"),
    "dtype-not-in-graph": ("graph.input.dtype", "float32", "uint8 if and only if"),
    "batch-two": ("graph.input.shape", [2, 32, 32, 3], r"must be null .* or 1"),
    "shape-differs": ("graph.input.shape", [None, 31, 32, 3], "for the crop size"),
    "layout-differs": ("graph.input.layout", "NCHW", "for the crop size"),
    "no-outputs": ("graph.outputs", [], "graph.outputs"),
    "no-scores": ("graph.outputs", [{"name": "e", "kind": "embedding"}], "is required"),
    "same-kind": (
        "graph.outputs",
        [{"name": "a", "kind": "logits"}, {"name": "b", "kind": "logits"}],
        "must be unique",
    ),
    "same-output-name": (
        "graph.outputs",
        [{"name": "a", "kind": "logits"}, {"name": "a", "kind": "embedding"}],
        "must be unique",
    ),
    "crop-exceeds-resize": ("preprocessing.resize_size_px", 31, "must not exceed"),
    "resize-huge": ("preprocessing.resize_size_px", 8193, "resize_size_px"),
    "std-zero": ("preprocessing.std", [0.5, 0.0, 0.5], "std must be positive"),
    "std-negative": ("preprocessing.std", [0.5, -1, 0.5], "std must be positive"),
    "mean-two-values": ("preprocessing.mean", [0.5, 0.5], "preprocessing.mean"),
    "interpolation": ("preprocessing.interpolation", "area", "interpolation"),
    "no-labels": ("labels", [], "labels"),
    "label-empty": ("labels.0.name", "", "labels.0.name"),
    "label-twice": ("labels", labels("red", "red", "blue"), "'red' occurs more than once"),
    "label-order": ("labels.0.index", 1, "in this order"),
    "label-gap": ("labels.2.index", 3, "in this order"),
    "synset": ("labels.0.synset", "n123", "labels.0.synset"),
    "temperature-zero": ("calibration", {"temperature": 0}, "temperature"),
    "no-golden": ("golden", [], "golden"),
    "golden-tolerance-zero": ("golden.0.tolerance", 0, "tolerance"),
    "golden-tolerance-wide": ("golden.0.tolerance", 0.21, "tolerance"),
    "golden-served-tolerance-zero": ("golden.0.served_tolerance", 0, "served_tolerance"),
    "golden-served-tolerance-wide": ("golden.0.served_tolerance", 0.26, "served_tolerance"),
    "golden-class": ("golden.0.top5.1.index", 3, "has class 3, there are 3 labels"),
    "golden-probability": ("golden.0.top5.0.probability", 1.1, "probability"),
    "golden-no-predictions": ("golden.0.top5", [], "top5"),
    "golden-digest-differs": ("golden.0.sha256", "0" * 64, "its digest differs"),
    "graph-not-listed": ("files", {"golden/red.png": sha(b"")}, "model.onnx is missing"),
    "lists-itself": (
        "files",
        {**fields()["files"], "manifest.json": "0" * 64},
        "must not be listed",
    ),
}


@pytest.mark.parametrize(("path", "value", "message"), REFUSALS.values(), ids=REFUSALS)
def test_manifest_contradiction_is_refused(path, value, message):
    with pytest.raises(ManifestInvalid, match=message):
        parse(changed(path, value))


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[]", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"name": NaN}'],
    ids=["empty", "cut", "null", "list", "string", "not-utf-8", "deep", "nan"],
)
def test_parse_manifest_text_that_is_not_a_manifest_is_refused(text):
    with pytest.raises(ManifestInvalid, match=r"^manifest\.json: "):
        parse_manifest(text)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_parse_manifest_non_finite_number_is_refused(value):
    text = json.dumps(fields()).replace("0.05", value)

    with pytest.raises(ManifestInvalid, match="tolerance"):
        parse_manifest(text)


def test_parse_manifest_message_never_contains_the_input():
    with pytest.raises(ManifestInvalid) as caught:
        parse(changed("graph.sha256", "secret-4711"))

    assert "4711" not in str(caught.value)


FEATURES = {"name": "features", "kind": "feature_map", "layout": "NCHW"}
EMBEDDING = {"name": "embedding", "kind": "embedding"}
CLASSIFIER = {"file": "classifier.npz", "n_features": 6}
LAYERS = {
    "file": "layers.onnx",
    "outputs": [{"name": "blocks.0", "operator": "Conv", "layout": "NCHW"}],
}
NEIGHBOURS = {
    "kind": "neighbours",
    "file": "unlike.npz",
    "n_neighbours": 10,
    "threshold": -0.4,
    "flagged_percent": 5,
}
REFERENCE = {
    "dataset": "made up",
    "n_images": 4,
    "channel_mean": [0.5, 0.4, 0.3],
    "channel_std": [0.2, 0.2, 0.1],
    "brightness": [1, 0, 3],
    "first_class": [4, 0, 0],
    "confidence": [0, 2, 2],
}


def complete(**changes):
    """A valid manifest with every optional part of version 2."""
    data = changed("graph.outputs", [*fields()["graph"]["outputs"], FEATURES, EMBEDDING])
    data["files"] |= {path: sha(b"") for path in ("classifier.npz", "layers.onnx", "unlike.npz")}
    parts = {
        "activation": "sigmoid",
        "classifier": CLASSIFIER,
        "layers": LAYERS,
        "reference": REFERENCE,
        "calibration": {"unlike": NEIGHBOURS},
    }
    return {**data, **parts, **changes}


def test_manifest_with_every_part_round_trips():
    manifest = parse(complete())

    assert parse_manifest(dump_manifest(manifest)) == manifest
    assert manifest.activation == "sigmoid"
    assert manifest.graph.output_of("feature_map").layout == "NCHW"
    assert manifest.graph.output_of("logits") is None


MISSING = {
    "classifier": ({"classifier": {**CLASSIFIER, "file": "other.npz"}}, "other.npz is missing"),
    "layers": ({"layers": {**LAYERS, "file": "other.onnx"}}, "other.onnx is missing"),
    "unlike": (
        {"calibration": {"unlike": {**NEIGHBOURS, "file": "other.npz"}}},
        "other.npz is missing",
    ),
    "two-purposes": ({"layers": {**LAYERS, "file": "model.onnx"}}, "has two purposes"),
    "class-counts": (
        {"reference": {**REFERENCE, "first_class": [4, 0]}},
        "one count for each label",
    ),
    "counts": ({"reference": {**REFERENCE, "brightness": [1, 1]}}, "must sum to n_images"),
    "no-feature-map": (
        {"graph": {**fields()["graph"], "outputs": [*fields()["graph"]["outputs"], EMBEDDING]}},
        "classifier: the graph has no output of kind feature_map",
    ),
    "no-embedding": (
        {"graph": {**fields()["graph"], "outputs": [*fields()["graph"]["outputs"], FEATURES]}},
        "unlike: the graph has no output of kind embedding",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MISSING.values(), ids=MISSING)
def test_manifest_part_without_what_it_needs_is_refused(changes, message):
    with pytest.raises(ManifestInvalid, match=message):
        parse(complete(**changes))


@pytest.mark.parametrize("part", ["classifier", "layers", "reference"])
def test_manifest_unknown_field_of_a_part_is_refused(part):
    data = complete()

    with pytest.raises(ManifestInvalid, match=rf"{part}\.surprise: unknown field"):
        parse({**data, part: {**data[part], "surprise": 1}})


def test_manifest_rule_of_unknown_kind_is_refused_with_what_to_do():
    rule = {"kind": "oracle", "threshold": 1}

    with pytest.raises(
        ManifestInvalid,
        match=r"calibration\.unlike: unknown kind, .* 'energy', 'neighbours'; .*upgrade convserve",
    ):
        parse(complete(calibration={"unlike": rule}))


def test_manifest_rule_without_a_kind_is_refused():
    with pytest.raises(ManifestInvalid, match=r"calibration\.unlike: .*'kind'"):
        parse(complete(calibration={"unlike": {"threshold": 1, "flagged_percent": 1}}))


def relabelled(labels):
    """A valid manifest with these labels, also in its golden examples."""
    data = changed("labels", labels)
    for example in data["golden"]:
        for prediction in example["top5"]:
            prediction["label"] = labels[prediction["index"]]["name"]
    return data


@given(
    st.lists(st.text(min_size=1, max_size=9), min_size=3, max_size=6, unique=True),
    st.floats(0.01, 10),
)
def test_manifest_round_trip_keeps_any_label_and_temperature(names, temperature):
    data = relabelled(labels(*names)) | {"calibration": {"temperature": temperature}}

    manifest = parse(data)

    assert parse_manifest(dump_manifest(manifest)) == manifest
    assert [label.name for label in manifest.labels] == names

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from contract.arrays import read_classifier
from contract.manifest import parse_manifest
from contract.repository.numbers import NUMBERS_FILE
from contract.versions import find_versions, read_layers, read_version
from tests import tinymodel
from tests.training.helpers import tinynet
from training.__main__ import main
from training.errors import VersionUnproven
from training.evaluation import parity
from training.export.export import export
from training.networks import architectures
from training.release import gates as gates
from training.release import publish


def repository_files(tmp_path):
    """Returns every path in the model repository. A refused import must leave none."""
    root = tmp_path / "models"
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def test_import_takes_the_weights_under_the_key_that_is_named(run_import, tmp_path):
    state = tinynet.TinyNet().state_dict()
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"student": zeros, "teacher": state}, tmp_path / "last.ckpt")

    refused = run_import(weights=tmp_path / "last.ckpt")
    result = run_import(weights=tmp_path / "last.ckpt", weights_key="teacher")

    assert refused.exit_code == 2
    assert "has weights under student, teacher; choose with --weights-key KEY" in refused.output
    assert result.exit_code == 0, result.output
    manifest = read_version(tmp_path / "models", "tiny", 1).manifest
    assert manifest.provenance.weights_source == "file last.ckpt, teacher"


def test_import_of_a_network_publishes_a_verified_version(run_import, tmp_path, monkeypatch):
    monkeypatch.setattr(gates, "export", export)

    result = run_import()

    assert result.exit_code == 0, result.output
    version = read_version(tmp_path / "models", "tiny", 1)
    manifest = version.manifest
    assert manifest.architecture == tinynet.ARCHITECTURE
    assert [label.name for label in manifest.labels] == list(tinynet.NAMES)
    assert [output.kind for output in manifest.graph.outputs] == [
        "probabilities",
        "logits",
        "embedding",
        "feature_map",
    ]
    assert manifest.classifier
    assert manifest.classifier.n_features == 6
    weights = read_classifier(version)
    assert weights
    assert weights.weight.shape == (3, 6)
    assert b"weights are in `classifier.npz`" in version.contents["MODEL_CARD.md"]
    assert manifest.reference
    assert manifest.reference.first_class == (4, 4, 4)
    assert manifest.parity
    assert manifest.metrics
    assert manifest.parity.max_abs_difference <= parity.MAX_DIFFERENCE
    assert manifest.parity.top1_agreement_percent == 100.0
    assert manifest.parity.batch_sizes == (1, 2, 7, 8)
    assert manifest.metrics.top1_percent == 100.0
    assert manifest.metrics.n_images == 12
    assert manifest.quantization is None
    assert manifest.provenance.license == "CC0-1.0"
    assert b"# tiny, version 1" in version.contents["MODEL_CARD.md"]


def test_import_writes_no_local_path_into_any_file(run_import, tmp_path, inputs_dir):
    run_import(int8=True, dataset="colours")

    contents = read_version(tmp_path / "models", "tiny", 1).contents
    text = (tmp_path / "models" / "tiny" / "1" / "manifest.json").read_bytes()
    for data in (text, *contents.values()):
        assert str(tmp_path).encode() not in data
        assert str(inputs_dir).encode() not in data
        assert b"/training/" not in data


def test_import_to_int8_records_calibration_and_accuracy_loss(run_import, tmp_path):
    result = run_import(int8=True, dataset="twelve coloured pictures")

    assert result.exit_code == 0, result.output
    manifest = read_version(tmp_path / "models", "tiny", 1).manifest
    assert manifest.quantization
    assert manifest.metrics
    assert manifest.quantization.n_calibration_images == 12
    assert manifest.quantization.accuracy_drop_percent == 0.0
    assert manifest.quantization.top1_agreement_percent == 100.0
    assert manifest.metrics.dataset == "twelve coloured pictures"


def test_import_twice_takes_the_next_version(run_import, tmp_path):
    run_import()
    run_import()

    assert find_versions(tmp_path / "models") == {"tiny": [1, 2]}


def test_import_of_an_existing_version_is_refused(run_import, tmp_path):
    run_import(version=1)
    before = read_version(tmp_path / "models", "tiny", 1).manifest_sha256

    result = run_import(version=1)

    assert result.exit_code == 2
    assert "version_exists: tiny/1 already exists" in result.output
    assert read_version(tmp_path / "models", "tiny", 1).manifest_sha256 == before


def test_import_with_replace_puts_a_new_version_in_its_place(run_import, tmp_path):
    run_import(version=1)

    result = run_import(version=1, replace=True, license="MIT")

    assert result.exit_code == 0, result.output
    assert read_version(tmp_path / "models", "tiny", 1).manifest.provenance.license == "MIT"
    assert find_versions(tmp_path / "models") == {"tiny": [1]}
    hidden = [path.name for path in (tmp_path / "models" / "tiny").glob(".*")]
    assert hidden == [NUMBERS_FILE]


def test_import_with_a_wrong_mean_fails_parity_and_publishes_nothing(
    run_import, tmp_path, monkeypatch
):
    wrong = tinynet.spec().model_copy(update={"mean": (0.4, 0.4, 0.4)})
    monkeypatch.setattr(gates, "export", export)
    monkeypatch.setattr(architectures, "preprocessing_of", lambda _: wrong)

    result = run_import()

    assert result.exit_code == 1
    assert "parity_failed: a probability differs by" in result.output
    assert repository_files(tmp_path) == []


def test_import_whose_int8_graph_loses_too_much_publishes_nothing(
    run_import, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "training.export.int8.quantize", lambda graph, _: with_negated_classifier(graph)
    )

    result = run_import(int8=True)

    assert result.exit_code == 1
    assert "quantization_failed: int8 differs too much from float" in result.output
    assert repository_files(tmp_path) == []


def test_import_with_float_if_int8_fails_publishes_the_float_graph(
    run_import, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "training.export.int8.quantize", lambda graph, _: with_negated_classifier(graph)
    )

    result = run_import(int8=True, float_if_int8_fails=True)

    assert result.exit_code == 0, result.output
    assert read_version(tmp_path / "models", "tiny", 1).manifest.quantization is None


def test_import_with_layers_publishes_their_graph_beside_an_int8_one(
    run_import, make_client, tmp_path, colours_dir
):
    result = run_import(int8=True, layers=True)

    assert result.exit_code == 0, result.output
    models = tmp_path / "models"
    version = read_version(models, "tiny", 1)
    layers = version.manifest.layers
    assert layers
    assert layers.file not in version.contents
    assert read_layers(models, version.manifest)
    answer = make_client(models_dir=models).post(
        "/v1/classify", content=(colours_dir / "green" / "green1.jpeg").read_bytes()
    )
    assert answer.json()["predictions"][0]["label"] == "green"


def test_import_to_float16_records_the_accuracy_loss_and_is_served(
    run_import, make_client, tmp_path, colours_dir
):
    result = run_import(fp16=True)

    assert result.exit_code == 0, result.output
    version = read_version(tmp_path / "models", "tiny", 1)
    assert version.manifest.half_precision
    assert version.manifest.half_precision.top1_agreement_percent == 100.0
    assert version.manifest.provenance.seed is None
    assert b"as a float16 graph" in version.contents["MODEL_CARD.md"]

    client = make_client(models_dir=tmp_path / "models")
    picture = (colours_dir / "green" / "green1.jpeg").read_bytes()

    answer = client.post("/v1/classify", content=picture).json()
    described = client.get("/v1/models/tiny").json()

    assert answer["predictions"][0]["label"] == "green"
    assert described["half_precision"]["accuracy_drop_percent"] == 0.0
    assert described["quantization"] is None


def test_import_to_float16_without_evaluation_is_gated_on_free_photographs(run_import, tmp_path):
    pytest.importorskip("skimage")

    result = run_import(fp16=True, evaluate=None)

    assert result.exit_code == 0, result.output
    half = read_version(tmp_path / "models", "tiny", 1).manifest.half_precision
    assert half
    assert half.accuracy_drop_percent is None


def test_import_whose_float16_graph_loses_too_much_publishes_nothing(
    run_import, tmp_path, monkeypatch
):
    monkeypatch.setattr("training.export.fp16.to_half", with_negated_classifier)

    result = run_import(fp16=True)

    assert result.exit_code == 1
    assert "half_precision_failed: fp16 differs too much from float" in result.output
    assert repository_files(tmp_path) == []


def test_import_with_float_if_fails_publishes_the_float_graph(run_import, tmp_path, monkeypatch):
    monkeypatch.setattr("training.export.fp16.to_half", with_negated_classifier)

    result = run_import(fp16=True, float_if_fails=True)

    assert result.exit_code == 0, result.output
    assert read_version(tmp_path / "models", "tiny", 1).manifest.precision == "fp32"


def test_import_with_int8_and_fp16_is_refused(run_import, tmp_path):
    result = run_import(int8=True, fp16=True)

    assert result.exit_code == 2
    assert "--int8 and --fp16 cannot be combined" in result.output
    assert not (tmp_path / "models").exists()


def with_negated_classifier(graph):
    """Returns the graph with its classifier's weights negated, so that its answers are wrong."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("classifier.weight"):
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    return model.SerializeToString()


def test_import_to_int8_without_evaluation_is_gated_on_free_photographs(run_import, tmp_path):
    pytest.importorskip("skimage")

    result = run_import(
        int8=True, evaluate=None, calibration=None, calibration_images=26, min_agreement=50, seed=3
    )

    assert result.exit_code == 0, result.output
    manifest = read_version(tmp_path / "models", "tiny", 1).manifest
    assert manifest.metrics is None
    assert manifest.quantization
    assert manifest.quantization.accuracy_drop_percent is None
    assert "scikit-image" in manifest.quantization.calibration_data


def test_import_below_the_required_agreement_is_refused(run_import, tmp_path, monkeypatch):
    pytest.importorskip("skimage")
    monkeypatch.setattr(
        "training.export.int8.quantize", lambda graph, _: with_negated_classifier(graph)
    )

    result = run_import(int8=True, evaluate=None, calibration_images=4)

    assert result.exit_code == 1
    assert "(--min-agreement)" in result.output
    assert repository_files(tmp_path) == []


def test_import_that_fails_verification_leaves_nothing(run_import, tmp_path, monkeypatch):
    def refuse(*_):
        raise VersionUnproven("made up")

    monkeypatch.setattr(publish, "verify_version", refuse)

    result = run_import()

    assert result.exit_code == 1
    assert repository_files(tmp_path) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param({"weights": None}, "--weights is required", id="no-weights"),
        pytest.param({"weights": "missing.pth"}, "missing.pth: no such file", id="weights-missing"),
        pytest.param({"weights": "package:no-such-package"}, "is not installed", id="no-package"),
        pytest.param({"license": None}, "--license", id="no-licence"),
        pytest.param({"labels": "missing.txt"}, "missing.txt", id="labels-missing"),
        pytest.param({"golden": "missing"}, "'missing' does not exist", id="golden-missing"),
        pytest.param({"evaluate": "missing"}, "'missing' does not exist", id="evaluate-missing"),
        pytest.param({"max_batch": 0}, "--max-batch", id="batch-of-zero"),
        pytest.param({"name": "a/b"}, "name", id="name-with-slash"),
    ],
)
def test_import_of_unusable_input_prints_one_line_and_exits_2(run_import, flags, message):
    result = run_import(**flags)

    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_import_of_a_timm_network_with_one_label_is_refused(run_import, tmp_path):
    (tmp_path / "one.txt").write_text("dog\n")

    result = run_import(labels=tmp_path / "one.txt")

    assert result.exit_code == 2
    assert "softmax, which is always 1" in result.output


@pytest.mark.parametrize("flag", [{"scores": "probabilities"}, {"activation": "sigmoid"}])
def test_import_of_a_timm_network_with_flags_about_scores_is_refused(run_import, flag):
    result = run_import(**flag)

    assert result.exit_code == 2
    assert f"--{next(iter(flag))} is for ONNX files" in result.output


@pytest.mark.parametrize(
    "flag",
    [
        *({"resize": 8}, {"crop": 8}, {"resize_mode": "squash"}, {"interpolation": "bilinear"}),
        *({"mean": "0,0,0"}, {"std": "1,1,1"}, {"input_layout": "NHWC"}, {"output": "scores"}),
    ],
)
def test_import_of_a_timm_network_with_flags_about_pictures_is_refused(run_import, flag):
    result = run_import(**flag)

    assert result.exit_code == 2
    assert f"--{next(iter(flag)).replace('_', '-')}: only for ONNX files" in result.output


def test_import_of_unreadable_golden_pictures_is_refused(run_import, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.jpg").write_bytes(b"no picture")

    result = run_import(golden=tmp_path / "broken")

    assert result.exit_code == 2
    assert "--golden broken: no readable pictures" in result.output


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("foo", "timm has no architecture 'foo'; timm.list_models() has all"),
        ("foo.onnx", "foo.onnx: no such file"),
    ],
)
def test_import_checks_the_source_before_the_options(source, message):
    result = CliRunner().invoke(main, ["import", source])

    assert (result.exit_code, message in result.output) == (2, True)


def test_help_summaries_are_whole():
    for command in main.commands.values():
        assert "..." not in command.get_short_help_str(45)


def test_import_of_an_unknown_architecture_suggests_similar_ones(run_import):
    result = run_import("tf_efficientnet_light0")

    assert result.exit_code == 2
    assert "did you mean tf_efficientnet_lite0" in result.output


def test_import_of_a_file_of_another_tool_is_refused_before_anything_else(run_import, tmp_path):
    result = run_import("net.keras", weights=None, license=None)

    assert result.exit_code == 2
    assert "input_refused: net.keras is a network of Keras" in result.output
    assert not (tmp_path / "models").exists()


def test_import_from_the_hub_asks_timm_for_its_weights(run_import, tmp_path):
    result = run_import(weights="hub")

    assert result.exit_code == 0, result.output
    manifest = read_version(tmp_path / "models", "tiny", 1).manifest
    assert manifest.provenance.weights_source == f"hub {tinynet.ARCHITECTURE}"


def test_import_with_undecided_golden_pictures_is_refused(run_import, tmp_path):
    grey = tmp_path / "grey"
    grey.mkdir()
    Image.new("RGB", (40, 40), (128, 102, 77)).save(grey / "grey.png")

    result = run_import(golden=grey)

    assert result.exit_code == 1
    assert "version_unproven: none of 1 golden pictures" in result.output


def test_import_that_is_unsure_about_the_example_pictures_is_published_with_a_warning(
    run_import, tmp_path, monkeypatch
):
    monkeypatch.setattr(gates, "export", export)
    state = tinynet.TinyNet().state_dict()
    torch.save(
        {**state, "classifier.weight": state["classifier.weight"] * 0.001}, tmp_path / "w.pth"
    )

    result = run_import(weights=tmp_path / "w.pth", golden=None, evaluate=None)

    assert result.exit_code == 0, result.output
    assert "The network is unsure about all 5 example pictures" in result.output
    version = read_version(tmp_path / "models", "tiny", 1)
    assert [example.undecided for example in version.manifest.golden] == [True] * 5
    assert "unsure about all 5" in version.contents["MODEL_CARD.md"].decode()


def test_import_evaluated_on_transparent_pictures_only_is_refused(run_import, tmp_path):
    (tmp_path / "clear" / "red").mkdir(parents=True)
    Image.new("RGBA", (40, 40), (255, 0, 0, 90)).save(tmp_path / "clear" / "red" / "a.png")

    result = run_import(evaluate=tmp_path / "clear")

    assert result.exit_code == 2
    assert "no readable opaque pictures" in result.output


def test_import_help_keeps_the_line_breaks_of_its_examples():
    result = CliRunner().invoke(main, ["import", "--help"])

    assert "\n    convserve-train import net.onnx --labels labels.txt" in result.output


def test_evaluate_measures_a_published_version(run_import, tmp_path, colours_dir):
    run_import()

    result = CliRunner().invoke(
        main, ["evaluate", "tiny/1", str(colours_dir), "--models", str(tmp_path / "models")]
    )

    assert result.exit_code == 0
    assert result.output.startswith("tiny/1: top-1 100.00% (standard error 0.00), top-5 100.00%")
    assert "classification error 0.0000" in result.output
    assert "red       100.0%  100.0%  100.0%         4" in result.output


def test_evaluate_writes_every_measure_as_json(run_import, tmp_path, colours_dir):
    run_import()
    models, listed = tmp_path / "models", tmp_path / "measures.json"

    arguments = ["evaluate", "tiny/1", str(colours_dir), "--models", str(models)]
    result = CliRunner().invoke(main, [*arguments, "--json", str(listed)])

    found = json.loads(listed.read_text(encoding="utf-8"))
    assert result.exit_code == 0
    assert (found["model"], found["labels"]) == ("tiny/1", list(tinynet.NAMES))
    assert found["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param("tiny/9", "no version 9 of tiny in models; there are: 1, 2", id="version"),
        pytest.param("tyni", "no model 'tyni' in models; there are: tiny", id="model"),
        pytest.param(
            "tiny/new", "the model must be <name> or <name>/<version>, got 'tiny/new'", id="word"
        ),
        pytest.param(
            "tiny/", "the model must be <name> or <name>/<version>, got 'tiny/'", id="slash"
        ),
    ],
)
def test_evaluate_of_a_missing_version_names_those_that_are_there(
    tmp_path, monkeypatch, model, message
):
    monkeypatch.chdir(tmp_path)
    for version in (1, 2):
        tinymodel.write_version(tmp_path / "models", version=version)

    result = CliRunner().invoke(main, ["evaluate", model, "."])

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"convserve-train: input_refused: {message}\n"


def test_evaluate_without_a_repository_says_that_there_are_no_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(main, ["evaluate", "tiny", "."])

    assert (result.exit_code, "no model 'tiny' in models; there are: none" in result.stderr) == (
        2,
        True,
    )


def test_evaluate_of_a_name_measures_the_newest_version(run_import, tmp_path, colours_dir):
    run_import()
    run_import()

    result = CliRunner().invoke(
        main, ["evaluate", "tiny", str(colours_dir), "--models", str(tmp_path / "models")]
    )

    assert result.output.startswith("tiny/2: top-1 100.00%")


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("--epochs", "; use --set head.epochs=VALUE or --set schedule.epochs=VALUE\n"),
        ("--batch-size", "; use --set head.batch_size=VALUE or --set loop.batch_size=VALUE\n"),
        ("--crop-scale=0.1", "; use --set augment.crop_scale=VALUE\n"),
        ("--replace", "No such option '--replace'."),
    ],
)
def test_fit_with_a_key_of_the_config_as_option_says_how_to_set_it(option, advice):
    result = CliRunner().invoke(main, ["fit", "--data", "digits", option, "3"])

    assert result.exit_code == 2
    assert advice in result.stderr


def test_two_imports_give_the_same_graph(run_import, tmp_path, monkeypatch):
    monkeypatch.setattr(gates, "export", export)

    run_import(int8=True)
    run_import(int8=True)

    graphs = [read_version(tmp_path / "models", "tiny", n).graph for n in (1, 2)]
    assert graphs[0] == graphs[1]


def test_imported_manifest_matches_the_committed_schema(run_import, tmp_path):
    run_import()
    text = (tmp_path / "models" / "tiny" / "1" / "manifest.json").read_text()
    schema = json.loads(
        (Path(__file__).parents[3] / "contract" / "manifest.schema.json").read_text()
    )

    assert json.loads(text).keys() <= schema["properties"].keys()
    assert set(schema["required"]) <= json.loads(text).keys()
    assert parse_manifest(text).golden


def test_import_of_a_worse_version_is_refused_unless_allowed(run_import, tmp_path, monkeypatch):
    run_import()
    monkeypatch.setattr(gates, "export", lambda *_: tinynet.negated(tinynet.exported()))
    monkeypatch.setattr(gates, "check_batches", lambda *_: 0.0)
    monkeypatch.setattr(gates, "check_parity", lambda *_: None)

    refused = run_import()
    allowed = run_import(allow_worse=True)

    assert refused.exit_code == 1
    assert "version_worse: tiny/2 is worse than tiny/1 on 12 pictures" in refused.output
    assert allowed.exit_code == 0, allowed.output
    comparison = read_version(tmp_path / "models", "tiny", 2).manifest.comparison
    assert comparison
    assert (comparison.top1_before_percent, comparison.top1_after_percent) == (100, 0)


def test_import_with_other_labels_is_refused_unless_allowed(run_import, tmp_path):
    run_import()
    (tmp_path / "labels.txt").write_text("red\ngreen\nviolet")
    flags = {"labels": tmp_path / "labels.txt", "evaluate": None}

    refused = run_import(**flags)
    allowed = run_import(**flags, allow_label_changes=True)

    assert refused.exit_code == 1
    assert "labels gone: 'blue'; labels new: 'violet'. Pass --allow-label-changes" in refused.output
    assert "golden" not in refused.output  # before any other gate
    assert allowed.exit_code == 0, allowed.output
    comparison = read_version(tmp_path / "models", "tiny", 2).manifest.comparison
    assert comparison
    assert (comparison.labels_removed, comparison.labels_added) == (("blue",), ("violet",))

"""`convserve-train fit` and `check`, from a folder of pictures to a published version."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from contract.preprocessing import read_input
from contract.upgrades import SCHEMA_VERSION
from contract.versions import Version, find_versions, read_version
from tests.training.helpers import tinynet
from training.__main__ import main
from training.commands import fit as fit_command
from training.config.config import Data, read_config
from training.data.checks.check import load_data
from training.data.samples import SamplePictures
from training.errors import QuantizationFailed
from training.evaluation.scorer import Scorer
from training.learning.folder import RunFolder
from training.networks.build import build as build_network
from training.release.publish import verify_version
from training.report import figures

pytestmark = pytest.mark.timeout(240)  # most tests here train, export and report
CONFIG = """
[network]
architecture = "convnet"
input_size_px = 16

[network.options]
widths = [8]
hidden = [8]

[optimizer]
learning_rate = 0.02

[schedule]
epochs = 3

[loop]
batch_size = 9

[publish]
precision = "fp32"
max_batch = 4
golden_images = 4
"""


MINE = ("--config", "mine.toml")


@dataclass(frozen=True)
class FitRun:
    """The result of one `fit` command and the folder it ran in."""

    root: Path
    result: Result

    @property
    def folder(self) -> Path:
        return self.root / "runs" / "colours" / "1"

    @property
    def version(self) -> Version:
        return read_version(self.root / "models", "colours", 1)


def write_pictures(root: Path, n: int = 6) -> None:
    """Writes n pictures of each colour to each split, all different."""
    for place, split in enumerate(("train", "val", "test")):
        for name in tinynet.NAMES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                data = tinynet.picture(name, 100 * place + i, (30 + i, 40 - i))
                (folder / f"{i}.png").write_bytes(data)


def run(root: Path, *arguments: str) -> FitRun:
    """Runs `fit` with `root` as the working directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "argv", ["convserve-train", "fit", *arguments])
        result = CliRunner().invoke(main, ["fit", *arguments], catch_exceptions=False)
    return FitRun(root, result)


def prepare(root: Path, *, n: int = 6) -> Path:
    write_pictures(root / "colours", n)
    (root / "mine.toml").write_text(CONFIG)
    return root


def find_in_output(result: Result, pattern: str) -> str:
    found = re.search(pattern, result.output)
    assert found, result.output
    return found[1]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> FitRun:
    """A finished run. Tests must not change it."""
    root = prepare(tmp_path_factory.mktemp("fit"))
    fitted = run(root, "--data", "colours", "--config", "mine.toml", "--license", "CC0-1.0")
    assert fitted.result.exit_code == 0, fitted.result.output
    return fitted


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures and a config. Its runs draw no plots: those of `published` are real."""
    monkeypatch.setattr(figures, "to_svg", lambda *_: b"<svg/>")
    monkeypatch.setattr(figures, "to_png", lambda *_, **__: b"")
    return prepare(tmp_path)


def test_fit_publishes_a_version_that_passes_verification(published):
    manifest = verify_version(published.root / "models", "colours", 1).manifest

    assert manifest.architecture == "convnet"
    assert [label.name for label in manifest.labels] == sorted(tinynet.NAMES)
    assert manifest.parity
    assert manifest.parity.top1_agreement_percent == 100.0
    assert manifest.provenance.license == "CC0-1.0"
    assert manifest.provenance.seed == 0
    config = read_config(str(published.folder / "config.toml"))
    assert manifest.provenance.config_sha256 == config.sha256
    assert "--data colours" in (manifest.provenance.command or "")


def test_fit_records_the_published_graphs_accuracy_on_the_test_pictures(published):
    version = published.version
    data, _ = load_data(str(published.root / "colours"), Data(), cache_dir=published.root)

    answers = Scorer(version.graph, version.manifest).probabilities(SamplePictures(data.test))

    hits = answers.argmax(axis=1) == [sample.index for sample in data.test]
    assert version.manifest.metrics
    assert version.manifest.metrics.n_images == len(data.test) == 18
    assert version.manifest.metrics.top1_percent == round(100 * float(np.mean(hits)), 3)


def test_fit_calibrates_on_the_validation_pictures(published):
    calibration = published.version.manifest.calibration
    logged = find_in_output(published.result, r"temperature ([0-9.]+) on 18 validation")

    assert calibration.temperature == pytest.approx(float(logged), abs=6e-4)
    assert calibration.n_fitted == 18
    assert [row.coverage_percent for row in calibration.conformal] == [90, 95, 99]
    assert calibration.unlike


def test_fit_records_the_inputs_and_predictions_on_the_test_pictures(published):
    manifest = published.version.manifest
    reference = manifest.reference

    assert reference
    assert manifest.metrics
    assert (reference.dataset, reference.n_images) == (manifest.metrics.dataset, 18)
    assert sum(reference.first_class) == 18
    assert len(reference.first_class) == 3
    data, _ = load_data(str(published.root / "colours"), Data(), cache_dir=published.root)
    rows = np.array([read_input(sample.read(), manifest) for sample in data.test], np.float32) / 255
    assert reference.channel_mean == pytest.approx(rows.mean(axis=(0, 1, 2)), abs=1e-4)
    assert reference.channel_std == pytest.approx(rows.std(axis=(0, 1, 2)), abs=1e-4)


def test_fit_writes_a_complete_manifest_of_the_newest_version(published):
    version = published.version

    assert version.schema_version == SCHEMA_VERSION
    output = version.manifest.graph.output_of("feature_map")
    assert output
    assert output.layout == "NCHW"
    assert version.manifest.activation == "softmax"
    assert version.manifest.classifier is None  # this network pools nothing


def test_fit_golden_examples_are_test_pictures_of_every_class(published):
    golden = published.version.manifest.golden

    test_files = {p.read_bytes() for p in (published.root / "colours" / "test").rglob("*.png")}
    assert {example.top5[0].label for example in golden} == set(tinynet.NAMES)
    assert all(published.version.contents[example.file] in test_files for example in golden)


def test_fit_writes_the_report_and_the_files_behind_it(published):
    folder = published.folder
    metrics = json.loads((folder / "report" / "metrics.json").read_text(encoding="utf-8"))
    manifest = published.version.manifest

    assert manifest.metrics
    assert metrics["test"]["top1_percent"] == pytest.approx(manifest.metrics.top1_percent, abs=1e-3)
    assert metrics["calibration"]["temperature"] == manifest.calibration.temperature
    page = (folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "colours, version 1" in page
    assert json.loads((folder / "check.json").read_text(encoding="utf-8"))["name"] == "colours"
    assert len((folder / "splits.csv").read_text(encoding="utf-8").splitlines()) == 1 + 54
    log = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in log].count("epoch") == 3


def test_fit_writes_no_local_path_into_the_version(published):
    version = published.version
    manifest = (published.root / "models" / "colours" / "1" / "manifest.json").read_bytes()

    for data in (manifest, *version.contents.values()):
        assert str(published.root).encode() not in data


def test_fit_does_not_publish_a_run_twice(published):
    again = run(published.root, "--resume", "runs/colours/1")

    assert again.result.exit_code == 0
    assert "published as colours/1" in again.result.output
    assert find_versions(published.root / "models") == {"colours": [1]}


def test_fit_killed_before_publishing_resumes_from_the_trained_network(
    published, tmp_path, monkeypatch
):
    shutil.copytree(published.folder, tmp_path / "copy")
    (tmp_path / "copy" / "published.json").unlink()
    request = json.loads((tmp_path / "copy" / "run.json").read_text())
    request["models_dir"] = str(tmp_path / "models")
    (tmp_path / "copy" / "run.json").write_text(json.dumps(request))
    monkeypatch.setattr("training.learning.learner.Learner.step", lambda *_: pytest.fail("trained"))

    resumed = run(tmp_path, "--resume", "copy")

    assert resumed.result.exit_code == 0, resumed.result.output
    assert resumed.version.graph == published.version.graph


def test_fit_continues_without_pictures_that_vanish_or_break_during_the_run(root, monkeypatch):
    def build(*arguments: Any) -> Any:
        (root / "colours" / "test" / "red" / "0.png").unlink()
        (root / "colours" / "val" / "red" / "0.png").write_bytes(b"broken")
        return build_network(*arguments)

    monkeypatch.setattr("training.commands.fitting.build", build)

    fitted = run(root, "--data", "colours", "--config", "mine.toml")

    assert fitted.result.exit_code == 0, fitted.result.output
    assert "test/red/0.png is left out: No such file" in fitted.result.output
    assert "val/red/0.png is left out" in fitted.result.output
    manifest = fitted.version.manifest
    assert manifest.metrics
    assert (manifest.metrics.n_images, manifest.calibration.n_fitted) == (17, 17)


def test_fit_interrupted_while_reporting_publishes_nothing(root, monkeypatch):
    def end(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.commands.fitting.write_fit_report", end)

    run(root, "--data", "colours", "--config", "mine.toml")

    assert not (root / "models").exists()
    assert RunFolder(root / "runs" / "colours" / "1").published is None


def test_fit_below_the_minimum_accuracy_publishes_nothing(root):
    arguments = ("--data", "colours", "--config", "mine.toml", "--set", "schedule.epochs=1")
    limits = ("--set", "publish.min_top1_percent=100", "--set", "optimizer.learning_rate=1e-9")

    fitted = run(root, *arguments, *limits)

    assert fitted.result.exit_code == 1
    assert "accuracy_too_low" in fitted.result.output
    assert not (root / "models").exists()


def test_fit_whose_int8_graph_loses_too_much_publishes_the_float_graph(root, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise QuantizationFailed("int8 costs 9 points of top-1, the limit is 1")

    monkeypatch.setattr("training.export.lower.make_int8", refuse)

    fitted = run(
        root, "--data", "colours", "--config", "mine.toml", "--set", "publish.precision=int8"
    )

    assert fitted.result.exit_code == 0, fitted.result.output
    assert "int8 costs 9 points" in fitted.result.output
    assert "the float graph is published instead" in fitted.result.output
    assert fitted.version.manifest.quantization is None


def test_fit_to_int8_calibrates_on_training_pictures(root):
    limits = ("--set", "publish.precision=int8", "--set", "publish.max_drop=100")

    fitted = run(root, "--data", "colours", "--config", "mine.toml", *limits)

    assert fitted.result.exit_code == 0, fitted.result.output
    quantization = fitted.version.manifest.quantization
    assert quantization
    assert quantization.calibration_data == "training pictures of colours"
    assert quantization.n_calibration_images == 18


def test_fit_to_float16_publishes_and_reports_a_float16_graph(root):
    arguments = ("--data", "colours", "--config", "mine.toml", "--set", "publish.precision=fp16")

    fitted = run(root, *arguments)

    assert fitted.result.exit_code == 0, fitted.result.output
    manifest = verify_version(root / "models", "colours", 1).manifest
    assert (manifest.precision, manifest.quantization) == ("fp16", None)
    assert manifest.half_precision
    assert manifest.half_precision.accuracy_drop_percent == 0.0
    assert manifest.parity
    assert manifest.parity.top1_agreement_percent == 100.0
    assert "float16" in (fitted.folder / "report" / "report.html").read_text(encoding="utf-8")


def test_fit_without_publishing_only_runs_the_gates_and_writes_the_report(root):
    fitted = run(root, "--data", "colours", "--config", "mine.toml", "--no-publish")

    assert fitted.result.exit_code == 0, fitted.result.output
    assert not (root / "models").exists()
    assert (fitted.folder / "report" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), "input_refused: --data is required"),
        (("--data", "nowhere"), "data_refused"),
        (("--data", "colours", "--config", "nothing"), "config_invalid: no config"),
        (("--data", "colours", "--set", "loop.batch=3"), "config_invalid"),
        (("--data", "colours", "--name", "a/b"), "input_refused: the model name"),
        (("--data", "colours", "--run", "colours"), "input_refused: colours is not empty"),
        (
            ("--data", "colours", *MINE, "--set", "network.architecture=none"),
            "architecture_refused",
        ),
        (("--data", "colours", *MINE, "--set", "optimizer.name=none"), "config_invalid"),
        (("--resume", "colours"), "checkpoint_refused"),
        (("--resume", "colours", "--seed", "1"), "remove --seed"),
    ],
    ids=[
        "no_data",
        "no_folder",
        "no_config",
        "key",
        "name",
        "run_folder",
        "architecture",
        "optimizer",
        "no_run",
        "resume_seed",
    ],
)
def test_fit_with_invalid_arguments_is_refused_before_training(root, arguments, code):
    fitted = run(root, *arguments)

    assert fitted.result.exit_code == 2
    assert code in fitted.result.output
    assert not (root / "models").exists()
    assert not (root / "runs").exists()


def test_fit_with_an_empty_class_is_refused(root):
    (root / "colours" / "train" / "violet").mkdir()

    fitted = run(root, "--data", "colours", "--config", "mine.toml")

    assert fitted.result.exit_code == 2
    assert "violet" in fitted.result.output
    assert not (root / "runs").exists()


def test_fit_of_an_existing_version_is_refused_before_training(root, monkeypatch):
    (root / "models" / "colours" / "4").mkdir(parents=True)
    monkeypatch.setattr("training.commands.fitting.build", lambda *_: pytest.fail("trained"))

    fitted = run(root, "--data", "colours", "--config", "mine.toml", "--version", "4")

    assert fitted.result.exit_code == 2
    assert "version_exists" in fitted.result.output
    assert not (root / "runs").exists()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/photos/My Birds/", "my-birds"),
        ("lists/fish.csv", "fish"),
        ("torchvision:CIFAR10", "cifar10"),
        ("digits", "digits"),
    ],
)
def test_fit_names_the_model_after_its_data(source, name):
    assert fit_command.name_of(source) == name


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "Мои фото 2024",
            "the model is called 2024, after мои фото 2024; --name sets another name\n",
        ),
        ("Birds", ""),
    ],
)
def test_fit_says_so_when_it_changes_the_name_of_the_data(tmp_path, monkeypatch, source, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / source).mkdir()

    result = CliRunner().invoke(main, ["fit", "--data", source])

    assert result.stderr == (
        f"{said}convserve-train: data_refused: {source}: no class folders; expected "
        f"{source}/train/<label>/<picture> with val and test beside it, or {source}/<label>/<picture>\n"
    )


def test_check_prints_its_findings_and_exits_with_a_status(root):
    (root / "colours" / "train" / "red" / "broken.png").write_bytes(b"not a picture")
    listed = root / "found.json"
    arguments = ["check", "--data", str(root / "colours"), "--json", str(listed)]

    usual = CliRunner().invoke(main, arguments, catch_exceptions=False)
    strict = CliRunner().invoke(main, [*arguments, "--strict"], catch_exceptions=False)
    (root / "colours" / "train" / "violet").mkdir()
    stopped = CliRunner().invoke(main, arguments, catch_exceptions=False)

    assert [usual.exit_code, strict.exit_code, stopped.exit_code] == [0, 1, 1]
    assert "broken.png" in usual.output
    assert "violet" in stopped.output
    assert "broken.png" in listed.read_text(encoding="utf-8")


def copy_of(published: FitRun, root: Path) -> None:
    """Puts a published version 1 into the model repository of `root`."""
    shutil.copytree(published.root / "models", root / "models")


def test_fit_that_is_worse_is_refused_and_published_without_training_if_allowed(
    published, root, monkeypatch
):
    copy_of(published, root)
    worse = ("--set", "schedule.epochs=1", "--set", "optimizer.learning_rate=1e-9")

    refused = run(root, "--data", "colours", *MINE, *worse)

    assert refused.result.exit_code == 1
    assert (
        "version_worse: colours/2 is worse than colours/1 on 18 pictures" in refused.result.output
    )
    assert "convserve-train fit --resume runs/colours/1 --allow-worse" in refused.result.output
    assert find_versions(root / "models") == {"colours": [1]}

    monkeypatch.setattr("training.learning.learner.Learner.step", lambda *_: pytest.fail("trained"))
    allowed = run(root, "--resume", "runs/colours/1", "--allow-worse")

    assert allowed.result.exit_code == 0, allowed.result.output
    comparison = read_version(root / "models", "colours", 2).manifest.comparison
    assert comparison
    assert comparison.version == 1
    assert comparison.difference_high_percent is not None
    assert comparison.difference_high_percent < 0


def test_fit_that_lost_a_class_is_refused_before_training(published, root, monkeypatch):
    copy_of(published, root)
    monkeypatch.setattr("training.commands.fitting.build", lambda *_: pytest.fail("trained"))
    for split in ("train", "val", "test"):
        shutil.rmtree(root / "colours" / split / "blue")

    fitted = run(root, "--data", "colours", *MINE)

    assert fitted.result.exit_code == 1
    assert "labels_changed: colours/2 would replace colours/1" in fitted.result.output
    assert "labels gone: 'blue'. Pass --allow-label-changes" in fitted.result.output
    assert not (root / "runs").exists()


def test_fit_that_is_as_good_says_so_in_log_manifest_and_card(published, root):
    copy_of(published, root)

    fitted = run(root, "--data", "colours", *MINE)

    assert fitted.result.exit_code == 0, fitted.result.output
    assert (
        "compared with colours/1 on 18 pictures: top-1 100.00% instead of" in fitted.result.output
    )
    version = read_version(root / "models", "colours", 2)
    assert version.manifest.comparison
    assert version.manifest.comparison.changed_answers == 0
    assert b"Compared with colours/1 on 18 pictures" in version.contents["MODEL_CARD.md"]
    assert published.version.manifest.comparison is None

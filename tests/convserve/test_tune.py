from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from convserve.__main__ import main
from convserve.commands import tune
from convserve.tuning.measuring import Bench, Configuration, Sample
from service.models.repository import RunPlan, load_version
from tests import tinymodel


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores and a default of single pictures, whatever they are elsewhere."""
    monkeypatch.setattr(tune, "usable_cpus", lambda: 2)
    monkeypatch.setattr(tune, "default_configuration", lambda *_: Configuration(2, 1, 1))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three pictures, one of them below, and a text file."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for name, colour in (("red.png", "red"), ("blue.JPG", "blue"), ("below/green.png", "green")):
        (folder / name).write_bytes(tinymodel.picture(colour))
    (folder / "notes.txt").write_text("no picture")
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["tune", *map(str, arguments)])


def show(monkeypatch: pytest.MonkeyPatch, rates: dict[int, float], rounds: int = 5) -> None:
    """Has batches of a size, on two lanes, make so many images/s; everything else makes 100."""

    def measured(_bench, chosen, _plan) -> Iterator[tuple[Configuration, Sample]]:
        for _ in range(rounds):
            for one in chosen:
                rate = rates.get(one.batch_size, 100.0) if one.lanes == 2 else 100.0
                yield one, Sample(rate, 1.0, 1e3 * one.lanes / rate, 2 * rate)
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "rounds", measured)


def test_tune_measures_and_writes_what_it_prints(models_dir, photos, tmp_path):
    json_file, svg_file = tmp_path / "curve.json", tmp_path / "curve.svg"
    outputs = ["--json", json_file, "--plot", svg_file]

    result = run("tiny", photos, "--models-dir", models_dir, "--seconds", "0.05", *outputs)

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("tiny/2 on cpu, 2 cores: 12 configurations x ")
    assert "pictures: 3 of 0 kB on average (3 of 3 files named)" in result.stdout
    document = json.loads(json_file.read_text(encoding="utf-8"))
    assert (document["model"], document["version"], document["cpus"]) == ("tiny", 2, 2)
    configurations = [point["configuration"] for point in document["points"]]
    assert [(one["lanes"], one["threads"], one["batch_size"]) for one in configurations] == [
        (lanes, threads, size)
        for lanes, threads in ((2, 1), (1, 1), (1, 2))
        for size in (1, 2, 4, 8)
    ]
    for point in document["points"]:
        assert len(point["samples"]) == point["rounds"] >= 5
        assert point["images_per_s_low"] <= point["images_per_s"] <= point["images_per_s_high"]
    assert "<svg" in svg_file.read_text(encoding="utf-8")


def test_tune_without_photos_takes_varied_examples(models_dir):
    result = run("tiny/1", "--models-dir", models_dir, "--seconds", "0.001")

    assert result.exit_code == 0, result.output
    assert "tiny/1 on cpu" in result.stdout
    assert "pictures: 40 of " in result.stdout
    assert "example pictures" in result.stdout


def test_tune_says_what_to_type_where_something_is_better(models_dir, photos, monkeypatch):
    show(monkeypatch, {4: 130.0})

    result = run("tiny", photos, "--models-dir", models_dir)

    assert result.exit_code == 0
    assert "batches of 4: +30 % images/s (+-0 over 5 rounds). Serve with" in result.stdout
    assert "  convserve serve --max-batch-size 4\n" in result.stdout
    assert "or set CONVSERVE_MAX_BATCH_SIZE=4; " in result.stdout


def test_tune_says_that_the_defaults_are_right(models_dir, photos, monkeypatch):
    show(monkeypatch, {4: 101.0})

    result = run("tiny", photos, "--models-dir", models_dir)

    assert "The defaults are right here (2 lanes, 1 thread each, batches of 1)" in result.stdout
    assert "Next best: 2 lanes, 1 thread each, batches of 4: +1 % images/s" in result.stdout
    assert "convserve serve" not in result.stdout


def test_tune_interrupted_prints_what_it_has_and_chooses_nothing(models_dir, photos, monkeypatch):
    show(monkeypatch, {4: 130.0}, rounds=4)

    result = run("tiny", photos, "--models-dir", models_dir)

    assert (result.exit_code, "interrupted" in result.stderr) == (0, True)
    assert "130.0" in result.stdout
    assert "Fewer than 5 rounds" in result.stdout


def test_tune_interrupted_at_once_fails(models_dir, photos, monkeypatch):
    show(monkeypatch, {}, rounds=0)

    result = run("tiny", photos, "--models-dir", models_dir)

    assert result.exit_code == 1
    assert "before anything was measured" in result.stderr


def test_tune_on_busy_cores_proposes_nothing(models_dir, photos, monkeypatch):
    def measured(_bench, chosen, _plan) -> Iterator[tuple[Configuration, Sample]]:
        for _ in range(5):
            for one in chosen:
                rate = 100.0 * one.batch_size
                yield one, Sample(rate, 1.0, 0.3e3 * one.lanes / rate, 100.0)

    monkeypatch.setattr(Bench, "rounds", measured)

    result = run("tiny", photos, "--models-dir", models_dir)

    assert "Too busy to tell: lanes had 30 % of a core each" in result.stdout
    assert "convserve serve" not in result.stdout


def test_tune_graph_of_one_picture_has_no_batches(tmp_path, photos):
    tinymodel.write_version(tmp_path / "models", batch=1)

    result = run("tiny", photos, "--models-dir", tmp_path / "models", "--seconds", "0.001")

    assert result.exit_code == 0, result.output
    assert "3 configurations" in result.stdout
    assert "takes one picture a run" in result.stdout


def test_tune_on_a_device_prepares_apart_and_tries_two_lanes(models_dir):
    subject = tune._load(models_dir, "tiny", "cpu")
    device = tune._Subject(
        subject.version, subject.engines, cpus=16, on_cores=False, default=Configuration(1, 1, 8)
    )

    pairs = {(one.lanes, one.threads) for one in device.configurations()}

    assert pairs == {(1, 1), (2, 1)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "no model 'none'; there are: tiny"),
        (["tiny/9"], "no version '9' of tiny; there are: 1, 2"),
        (["tiny", "--provider", "cuda"], "cuda"),
        (["tiny", "EMPTY"], "no image files in"),
        (["tiny", "EMPTY/missing.jpg"], "none of the pictures can be read"),
        (["tiny", "PHOTOS/notes.txt"], "none of the pictures can be read"),
        (["--models-dir", "EMPTY"], "holds no version"),
    ],
    ids=["model", "version", "provider", "no_pictures", "missing", "unreadable", "no_models"],
)
def test_tune_that_cannot_begin_says_why(models_dir, photos, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    names = {"EMPTY": str(tmp_path / "empty"), "PHOTOS": str(photos)}
    for name, path in names.items():
        arguments = [one.replace(name, path) for one in arguments]

    result = run("--models-dir", models_dir, *arguments)

    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]


def test_tune_leaves_out_unreadable_pictures(models_dir, photos):
    (photos / "corrupt.png").write_bytes(b"corrupt")

    result = run("tiny", photos, "--models-dir", models_dir, "--seconds", "0.001")

    assert result.exit_code == 0, result.output
    assert "corrupt.png: left out: " in result.stderr
    assert "(3 of 4 files named)" in result.stdout


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_tune_file_that_cannot_be_written_refused_at_once(models_dir, tmp_path, option):
    result = run("--models-dir", models_dir, option, tmp_path / "none" / "file")

    assert (result.exit_code, "no such folder" in result.stderr) == (2, True)


def test_tune_without_example_pictures_asks_for_photos(models_dir, monkeypatch):
    monkeypatch.setattr(tune, "example_folder", lambda: None)

    result = run("tiny", "--models-dir", models_dir)

    assert (result.exit_code, "name PHOTOS" in result.stderr) == (1, True)


def test_tune_default_is_what_the_service_does_without_settings(tmp_path, monkeypatch):
    monkeypatch.undo()
    tinymodel.write_version(tmp_path)
    version = load_version(tmp_path, "tiny", 1, RunPlan("cpu"))

    assert tune.default_configuration(version, 4) == Configuration(4, 1, 8)

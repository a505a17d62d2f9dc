from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from convserve import pictures
from convserve.commands import convserve, tune
from convserve.tuning import Bench, Configuration, Sample
from service.models.repository import EngineConfig, load_version
from tests import tinymodel


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "usable_cpus", lambda: 2)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three pictures, one of them in a subfolder, and a text file."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for name, colour in (("red.png", "red"), ("blue.JPG", "blue"), ("below/green.png", "green")):
        (folder / name).write_bytes(tinymodel.picture(colour))
    (folder / "notes.txt").write_text("no picture")
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(convserve, ["tune", *map(str, arguments)])


def fake_rates(
    monkeypatch: pytest.MonkeyPatch,
    rates: dict[int, float],
    *,
    rounds: int | None = None,
    core_share: float = 1.0,
) -> None:
    """Fakes the measurement: `rates` is images/s by batch size on two lanes, all else has 100."""

    def sample(_bench: Bench, one: Configuration, number: int, _slice_s: float) -> Sample:
        if number == rounds:
            raise KeyboardInterrupt
        rate = rates.get(one.batch_size, 100.0) if one.lanes == 2 else 100.0
        return Sample(rate, 1.0, core_share * 1e3 * one.lanes / rate, 2 * rate)

    monkeypatch.setattr(Bench, "sample", sample)


def test_tune_measures_and_writes_what_it_prints(models_dir, photos, tmp_path):
    json_file, svg_file = tmp_path / "curve.json", tmp_path / "curve.svg"
    outputs = ["--json", json_file, "--plot", svg_file]

    result = run("tiny", photos, "--models-dir", models_dir, "--seconds", "0.05", *outputs)

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("tiny/2 on cpu, 2 cores\npictures: 3, 0 kB on average (3 of 3")
    document = json.loads(json_file.read_text(encoding="utf-8"))
    assert (document["model"], document["version"], document["cpus"]) == ("tiny", 2, 2)
    assert document["default"] == {"lanes": 2, "threads": 1, "batch_size": 8}
    points = document["points"]
    assert [(one["lanes"], one["threads"], one["batch_size"]) for one in points] == [
        *((lanes, 1, size) for lanes in (2, 1) for size in (1, 2, 4, 8)),
        (1, 2, 1),
    ]
    for point in points:
        rates = [sample["images_per_s"] for sample in point["samples"]]
        assert len(rates) >= 5
        assert min(rates) <= point["images_per_s"] <= max(rates)
        assert f"{point['images_per_s']:.1f}" in result.stdout
    drawing = ElementTree.parse(svg_file).getroot()  # noqa: S314 - our own
    assert len(drawing.findall("{http://www.w3.org/2000/svg}circle")) == len(points)


def test_tune_table_and_bars_have_a_line_for_each_point(models_dir, photos, monkeypatch):
    fake_rates(monkeypatch, {4: 150.0})

    lines = run("tiny", photos, "--models-dir", models_dir).stdout.splitlines()

    table = [line.split() for line in lines if line.count("+-0%") == 2]
    assert len(table) == 9
    assert table[2] == "2 1 4 150.0 +-0% 1.0 13.33 13.33 300.0 +-0%".split()  # noqa: SIM905 - as printed
    assert (table[3][-1], table[8][-1]) == ("default", "single")
    bars = [line for line in lines if " =" in line]
    assert [bar.count("=") for bar in bars] == [15, 15, 22, 15, 15, 15, 15, 15, 15]  # of 44 for 300
    assert bars[2].index("|") == bars[2].index("=") + 44


@pytest.mark.parametrize("batch", [None, 1], ids=["batches", "one_batch_size"])
def test_tune_plot_stays_within_its_frame(tmp_path, photos, monkeypatch, batch):
    tinymodel.write_version(tmp_path / "models", batch=batch)
    fake_rates(monkeypatch, {4: 1730.0})
    svg_file = tmp_path / "curve.svg"

    result = run("tiny", photos, "--models-dir", tmp_path / "models", "--plot", svg_file)

    assert result.exit_code == 0, result.output
    circles = ElementTree.parse(svg_file).findall(".//{http://www.w3.org/2000/svg}circle")  # noqa: S314
    assert len(circles) == (3 if batch else 9)
    for circle in circles:
        assert 60 <= float(circle.attrib["cx"]) <= 620
        assert 50 <= float(circle.attrib["cy"]) <= 310


def test_tune_without_photos_uses_varied_examples(models_dir):
    result = run("tiny/1", "--models-dir", models_dir, "--seconds", "0.001")

    assert result.exit_code == 0, result.output
    assert "tiny/1 on cpu" in result.stdout
    assert "pictures: 40, " in result.stdout
    assert "example pictures" in result.stdout


def test_tune_prints_the_flags_of_a_faster_configuration(models_dir, photos, monkeypatch):
    fake_rates(monkeypatch, {4: 130.0})

    result = run("tiny", photos, "--models-dir", models_dir)

    assert result.exit_code == 0
    assert "batches of 4: +30% images/s (+-0% over 9 rounds).\nServe with" in result.stdout
    assert "  convserve serve --max-batch-size 4\n" in result.stdout
    assert "or set CONVSERVE_MAX_BATCH_SIZE=4. " in result.stdout


def test_tune_recommends_the_defaults_if_nothing_is_faster(models_dir, photos, monkeypatch):
    fake_rates(monkeypatch, {4: 101.0})

    result = run("tiny", photos, "--models-dir", models_dir)

    assert "Keep the defaults (2 lanes, batches of 8)" in result.stdout
    assert "Next best: 2 lanes, batches of 4: +1% images/s" in result.stdout
    assert "convserve serve" not in result.stdout


def test_tune_interrupted_prints_its_results_and_recommends_nothing(
    models_dir, photos, monkeypatch
):
    fake_rates(monkeypatch, {4: 130.0}, rounds=4)

    result = run("tiny", photos, "--models-dir", models_dir)

    assert (result.exit_code, "interrupted" in result.stderr) == (0, True)
    assert "130.0" in result.stdout
    assert "Fewer than 5 rounds" in result.stdout


def test_tune_interrupted_at_once_fails(models_dir, photos, monkeypatch):
    fake_rates(monkeypatch, {}, rounds=0)

    result = run("tiny", photos, "--models-dir", models_dir)

    assert result.exit_code == 1
    assert "before anything was measured" in result.stderr


def test_tune_on_busy_cores_recommends_nothing(models_dir, photos, monkeypatch):
    fake_rates(monkeypatch, {4: 130.0}, core_share=0.3)

    result = run("tiny", photos, "--models-dir", models_dir)

    assert "too busy: each lane got only 30% of a core" in result.stdout
    assert "convserve serve" not in result.stdout


def test_tune_graph_of_one_picture_has_no_batches(tmp_path, photos):
    tinymodel.write_version(tmp_path / "models", batch=1)

    result = run("tiny", photos, "--models-dir", tmp_path / "models", "--seconds", "0.001")

    assert result.exit_code == 0, result.output
    assert "3 configurations" in result.stdout
    assert "takes one picture per run" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "no model 'none'; there are: tiny"),
        (["tiny/9"], "no version '9' of tiny; there are: 1, 2"),
        (["tiny", "--provider", "cuda"], "cuda"),
        (["tiny", "EMPTY"], "no readable pictures in"),
        (["tiny", "EMPTY/missing.jpg"], "no readable pictures in"),
        (["tiny", "PHOTOS/notes.txt"], "no readable pictures in"),
        (["--models-dir", "EMPTY"], "no model versions found"),
    ],
    ids=["model", "version", "provider", "no_pictures", "missing", "unreadable", "no_models"],
)
def test_tune_that_cannot_start_says_why(models_dir, photos, tmp_path, arguments, message):
    (tmp_path / "empty").mkdir()
    names = {"EMPTY": str(tmp_path / "empty"), "PHOTOS": str(photos)}
    for name, path in names.items():
        arguments = [one.replace(name, path) for one in arguments]

    result = run("--models-dir", models_dir, *arguments)

    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]


def test_tune_skips_unreadable_pictures(models_dir, photos):
    (photos / "corrupt.png").write_bytes(b"corrupt")

    result = run("tiny", photos, "--models-dir", models_dir, "--seconds", "0.001")

    assert result.exit_code == 0, result.output
    assert "corrupt.png: skipped: " in result.stderr
    assert "(3 of 4 given files)" in result.stdout


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_tune_file_that_cannot_be_written_refused_at_once(models_dir, tmp_path, option):
    result = run("--models-dir", models_dir, option, tmp_path / "none" / "file")

    assert (result.exit_code, "no such folder" in result.stderr) == (2, True)


def test_tune_without_example_pictures_asks_for_photos(models_dir, monkeypatch):
    monkeypatch.setattr(pictures, "example_folder", lambda: models_dir / "none")

    result = run("tiny", "--models-dir", models_dir)

    assert (result.exit_code, "pass PHOTOS" in result.stderr) == (1, True)


def test_tune_default_is_the_services_default(tmp_path, monkeypatch):
    monkeypatch.undo()
    tinymodel.write_version(tmp_path)
    version = load_version(tmp_path, "tiny", 1, EngineConfig("cpu"))

    assert tune.default_configuration(version, 4) == Configuration(4, 1, 8)

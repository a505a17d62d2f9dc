from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from convserve.commands import convserve
from tests import tinymodel


def run(models_dir: Path, *arguments: str | Path) -> Result:
    given = ["models", "diff", *map(str, arguments), "--models-dir", str(models_dir)]
    return CliRunner().invoke(convserve, given)


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """Holds tiny/1, tiny/2 with another graph, other/1 with other preprocessing, and bad/1."""
    folder = tmp_path / "models"
    tinymodel.write_version(folder)
    tinymodel.write_version(folder, version=2, lopsided=True)
    tinymodel.write_version(folder, "other", kind="float32")
    tinymodel.write_version(folder, "bad")
    (folder / "bad" / "1" / "model.onnx").write_bytes(b"corrupt")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A picture each of red and blue, and a file that is no picture."""
    folder = tmp_path / "pictures"
    for colour in ("red", "blue"):
        (folder / colour).mkdir(parents=True)
        (folder / colour / "one.png").write_bytes(tinymodel.picture(colour))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_table_shows_every_part(models_dir, pictures):
    result = run(models_dir, "tiny/1", "other/1", pictures, "--seconds", "0.001")

    assert result.exit_code == 0
    text = result.output
    assert text.startswith("A  tiny/1, made 2026-01-01, digest ")
    for part in (
        "Labels: 3 in A, 3 in B, 3 in both\n  the same, in the same order\n",
        "NHWC",
        "NCHW",
        "graph file",
        "ms per picture",
        "Measured on this machine (cpu, one thread), in turns: n = 5 each, 2 pictures",
        "Answers: 2 of 2 pictures have the same first class, 100.00%",
        "top-1 on 2 pictures with a known class: A 100.00%, B 100.00%, +0.00 points",
        f"Not decoded (1):\n  {pictures / 'broken.png'}: ",
    ):
        assert part in text
    assert "interpolation" not in text  # the same in both


def test_json_holds_every_part(models_dir, pictures):
    result = run(models_dir, "tiny/1", "tiny", pictures, "--json", "--seconds", "0.001")

    found = json.loads(result.stdout)
    assert (found["a"]["version"], found["b"]["version"]) == (1, 2)
    assert found["labels"]["n_shared"] == 3
    assert found["graph"]["sha256"]["same"] is False
    assert found["preprocessing"]["crop_size_px"] == {"a": 8, "b": 8, "same": True}
    assert found["speed"]["n"] >= 5  # the least
    assert found["answers"]["agreement_percent"]["value"] == 100.0
    assert found["answers"]["accuracy"]["difference_percent"]["value"] == 0.0
    assert list(found["refused"]) == [str(pictures / "broken.png")]


def test_table_cuts_long_lists_and_json_does_not(models_dir, tmp_path):
    names = [f"class {index} {'x' * 80}" for index in range(3)]
    golden = [
        {
            **example.model_dump(),
            "top5": [{**one.model_dump(), "label": names[one.index]} for one in example.top5],
        }
        for example in tinymodel.write_version(tmp_path / "scratch").golden
    ]
    labels = [{"index": index, "name": name} for index, name in enumerate(names)]
    tinymodel.write_version(models_dir, "long", lopsided=True, labels=labels, golden=golden)
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(25):
        (folder / f"{number}.png").write_bytes(tinymodel.picture("red"))

    arguments = (models_dir, "tiny/1", "long", folder, "--seconds", "0")
    text, document = run(*arguments).output, json.loads(run(*arguments, "--json").stdout)

    assert "class 0 xxxxxxxxxxxxxxxxxxxxx...  0." in text
    assert "and 5 more; --json lists all" in text
    assert "no mean KL, since the classes differ" in text
    assert len(document["answers"]["changed"]) == 25
    assert document["speed"] is None


def write_constant(models_dir: Path, version: int, answer: list[float], activation: str) -> None:
    """Writes a version that answers every picture alike."""
    names = [*tinymodel.LABELS, *(f"label {index}" for index in range(3, len(answer)))]
    ranked = sorted(enumerate(answer), key=lambda pair: -pair[1])[:5]
    top5 = [{"index": i, "label": names[i], "probability": p} for i, p in ranked]
    scratch = tinymodel.write_version(models_dir.parent / "scratch", version=version)
    tinymodel.write_version(
        models_dir,
        "constant",
        version,
        graph_file=tinymodel.constant_graph(answer),
        activation=activation,
        labels=[{"index": index, "name": names[index]} for index in range(len(answer))],
        golden=[{**example.model_dump(), "top5": top5} for example in scratch.golden],
    )


def test_sigmoid_shows_the_labels_that_were_gained_and_lost(models_dir, pictures):
    write_constant(models_dir, 1, [0.9, 0.6, 0.1], "sigmoid")
    write_constant(models_dir, 2, [0.9, 0.3, 0.7], "sigmoid")

    arguments = (models_dir, "constant/1", "constant/2", pictures, "--seconds", "0")
    text, document = run(*arguments).output, json.loads(run(*arguments, "--json").stdout)

    assert "Answers: 0 of 2 pictures have the same labels above 0.5, 0.00%" in text
    assert "largest change of a probability 0.6; mean KL" in text
    assert (
        "                      label       A       B\n"
        "blue/one.png  gained  blue   0.1000  0.7000\n"
        "              lost    green  0.6000  0.3000\n"
        "red/one.png   gained  blue   0.1000  0.7000\n"
    ) in text
    assert "top-1" not in text
    assert "accuracy" not in text
    assert document["graph"]["activation"] == {"a": "sigmoid", "b": "sigmoid", "same": True}
    answers = document["answers"]
    assert (answers["n_same"], answers["accuracy"]) == (0, None)
    assert answers["changed"][0] == {
        "file": str(pictures / "blue" / "one.png"),
        "gained": [{"label": "blue", "a": 0.1, "b": 0.7}],
        "lost": [{"label": "green", "a": 0.6, "b": 0.3}],
    }


def test_table_cuts_long_lists_of_labels_and_json_does_not(models_dir, pictures):
    write_constant(models_dir, 1, [0.9] * 12, "sigmoid")
    write_constant(models_dir, 2, [0.1] * 12, "sigmoid")

    arguments = (models_dir, "constant/1", "constant/2", pictures, "--seconds", "0")
    text, document = run(*arguments).output, json.loads(run(*arguments, "--json").stdout)

    assert (
        "              lost  label 9     0.9000  0.1000\n                    and 2 more\n" in text
    )
    assert len(document["answers"]["changed"][0]["lost"]) == 12


def test_sigmoid_and_softmax_say_that_they_mean_different_things(models_dir, pictures):
    write_constant(models_dir, 1, [0.7, 0.2, 0.1], "softmax")
    write_constant(models_dir, 2, [0.6, 0.9, 0.1], "sigmoid")

    arguments = (models_dir, "constant/1", "constant/2", pictures, "--seconds", "0")
    text, document = run(*arguments).output, json.loads(run(*arguments, "--json").stdout)

    assert (
        "Answers: 0 of 2 pictures have the same first class, 0.00% (0.00 to 65.76)\n"
        "  A is softmax, B is sigmoid, so their probabilities mean different things: only the first "
        "classes are compared\n\n"
        "              class  A says          B says\n"
        "blue/one.png  blue   red     0.7000  green   0.9000\n"
    ) in text
    assert "top-1" not in text
    answers = document["answers"]
    assert (answers["max_probability_change"], answers["mean_kl"]) == (None, None)
    assert answers["accuracy"] is None


def test_metrics_of_different_pictures_have_no_difference(tmp_path):
    metrics = {"top5_percent": 99.0, "n_images": 100, "standard_error": 3.0}
    for number, (top1, dataset) in enumerate([(80.0, "d"), (90.0, "d"), (95.0, "e")], 1):
        given = {**metrics, "top1_percent": top1, "dataset": dataset}
        tinymodel.write_version(tmp_path, version=number, metrics=given)

    same, other = (
        run(tmp_path, "tiny/1", b, "--seconds", "0").output for b in ("tiny/2", "tiny/3")
    )

    assert "+10.00 points" in same
    assert "points" not in other
    assert "The metrics are not of the same pictures." in other


def test_long_texts_that_differ_at_their_end_show_the_end(tmp_path):
    for number, end in ((1, "seven bits"), (2, "eight bits")):
        tinymodel.write_version(tmp_path, version=number, architecture=f"{'x' * 90} in {end}")

    shown = run(tmp_path, "tiny/1", "tiny/2", "--seconds", "0").output

    assert "...xxxx in seven bits  ...xxxx in eight bits" in shown


def test_no_picture_that_can_be_decoded_is_no_error(models_dir, pictures):
    result = run(models_dir, "tiny/1", "tiny/2", pictures / "broken.png", "--seconds", "0")

    assert result.exit_code == 0
    assert "Answers: none of the 1 files in" in result.output


def test_a_version_and_itself_are_the_same(models_dir):
    result = run(models_dir, "tiny/1", "tiny/1", "--seconds", "0")

    assert "A and B are the same version." in result.output


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["tiny"], 2, "takes 2 values"),
        (["tiny", "nothing"], 1, "no model 'nothing'; there are: bad, other, tiny"),
        (["tiny/1", "tiny/9"], 1, "no version '9' of tiny; there are: 1, 2"),
        (["tiny", "bad"], 1, "bad/1: model.onnx is not the file that was published"),
        (["tiny", "tiny", "nowhere"], 1, "nowhere: no such file or folder"),
        (["tiny", "tiny", "empty"], 1, "empty: no image files in this folder"),
        (["tiny", "tiny", "--seconds", "-1"], 2, "is not in the range"),
        (["tiny", "tiny", "--provider", "cuda"], 1, "cuda"),
    ],
)
def test_wrong_use_says_why(models_dir, monkeypatch, tmp_path, arguments, exit_code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()

    result = run(models_dir, *arguments)

    assert (result.exit_code, message in result.stderr) == (exit_code, True)

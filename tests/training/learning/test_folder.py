import csv
import json

import pytest

from contract.manifest import Label
from training.config.config import read_config
from training.data.checks.findings import Finding, Findings
from training.data.samples import DataSet, Sample
from training.errors import CheckpointRefused, ConfigInvalid, InputRefused
from training.learning.folder import RunFolder, RunRequest, next_folder

REQUEST = RunRequest("/data/birds", "birds", None, "/models", "MIT", True, "convserve-train fit")


def test_run_folder_returns_the_saved_request_and_config(tmp_path):
    config = read_config("digits", ["seed=3", "data.leaks=stop"])
    RunFolder.new(tmp_path / "run", REQUEST, config)

    request, found = RunFolder(tmp_path / "run").read_request()

    assert request == REQUEST
    assert found == config


def test_run_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(InputRefused, match="--resume"):
        RunFolder.new(tmp_path, REQUEST, read_config("digits"))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"source": "x"}'])
def test_folder_without_a_valid_run_cannot_be_resumed(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)

    with pytest.raises(CheckpointRefused, match=r"run\.json"):
        RunFolder(tmp_path).read_request()


def test_run_folder_with_an_invalid_config_names_the_key(tmp_path):
    folder = RunFolder.new(tmp_path / "run", REQUEST, read_config("digits"))
    folder.write("config.toml", "speed = 3\n")

    with pytest.raises(ConfigInvalid, match="speed"):
        folder.read_request()


def test_run_folder_discarded_leaves_nothing_it_made(tmp_path):
    (tmp_path / "mine").mkdir()
    new = RunFolder.new(tmp_path / "runs" / "birds" / "1", REQUEST, read_config("digits"))
    given = RunFolder.new(tmp_path / "mine", REQUEST, read_config("digits"))

    new.discard()
    given.discard()

    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_run_folder_of_a_run_that_trained_is_not_discarded(tmp_path):
    folder = RunFolder.new(tmp_path / "run", REQUEST, read_config("digits"))
    folder.write("last.pt", "")

    folder.discard()

    assert len(list(folder.path.iterdir())) == 3


def test_run_folder_remembers_the_published_version(tmp_path):
    folder = RunFolder.new(tmp_path / "run", REQUEST, read_config("digits"))
    before = folder.published

    folder.note_published("birds/2")

    assert (before, RunFolder(folder.path).published) == (None, "birds/2")


def test_run_folder_lists_every_picture_with_its_split(tmp_path):
    a, b, c = ((Sample(f"{name}, 1.png", 0, data=b""),) for name in "abc")
    data = DataSet("x", (Label(index=0, name="one"),), a, b, c)
    folder = RunFolder.new(tmp_path / "run", REQUEST, read_config("digits"))

    folder.write_data(data, Findings("é", items=(Finding("note", "size", "small"),)))

    with (folder.path / "splits.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["split", "picture", "label"],
        ["train", "a, 1.png", "one"],
        ["validation", "b, 1.png", "one"],
        ["test", "c, 1.png", "one"],
    ]
    found = json.loads((folder.path / "check.json").read_text(encoding="utf-8"))
    assert (found["name"], found["findings"][0]["code"]) == ("é", "size")
    assert not list(folder.path.glob(".*")), "nothing temporary is left"


def test_next_folder_is_one_above_the_highest(tmp_path):
    for name in ("1", "9", "notes", "10"):
        (tmp_path / "birds" / name).mkdir(parents=True)

    assert next_folder(tmp_path, "birds") == tmp_path / "birds" / "11"
    assert next_folder(tmp_path, "fish") == tmp_path / "fish" / "1"

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from contract.versions import find_versions
from convserve.commands import convserve
from tests import tinymodel


def run(*arguments: str | Path) -> Result:
    given = ["models", "relabel", *map(str, arguments)]
    return CliRunner().invoke(convserve, given)


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    tinymodel.write_version(tmp_path / "models")
    return tmp_path / "models"


def names_file(folder: Path, text: str) -> Path:
    (folder / "names.json").write_text(text)
    return folder / "names.json"


def test_relabel_says_what_was_done_and_what_happens_next(models_dir, tmp_path):
    file = names_file(tmp_path, '{"red": "rot", "blue": "blau"}')

    result = run("tiny", "1", "--map", file, "--models-dir", models_dir)

    assert result.exit_code == 0
    assert result.output.splitlines()[:3] == [
        "renamed   'red' to 'rot'",
        "renamed   'blue' to 'blau'",
        "published tiny/2: 1 of 3 names are unchanged",
    ]
    assert "A service that reads this folder serves tiny/2" in result.output
    assert find_versions(models_dir) == {"tiny": [1, 2]}


def test_diff_of_a_relabelled_version_shows_the_renamed_classes(models_dir, tmp_path):
    run("tiny", "1", "--map", names_file(tmp_path, '{"red": "rot"}'), "--models-dir", models_dir)

    options = ["--seconds", "0", "--models-dir", str(models_dir)]
    shown = CliRunner().invoke(convserve, ["models", "diff", "tiny/1", "tiny/2", *options])

    assert "  renamed (1): 'red' to 'rot'\n" in shown.output


@pytest.mark.parametrize(
    ("name", "version", "text", "exit_code", "message"),
    [
        (
            "tiny",
            "1",
            '{"rd": "rot"}',
            1,
            "names.json does not fit tiny/1: no class is called 'rd'",
        ),
        ("tiny", "1", '{"red": "blue"}', 1, "Nothing was published."),
        ("tiny", "1", "[]", 1, "names.json cannot be read as json: expected one object"),
        ("tiny", "2", '{"red": "rot"}', 1, "no version '2' of tiny; there are: 1"),
        ("tin", "1", '{"red": "rot"}', 1, "no model 'tin'; there are: tiny"),
        ("tiny", "x", '{"red": "rot"}', 2, "'VERSION'"),
    ],
)
def test_wrong_use_publishes_nothing_and_says_why(
    models_dir, tmp_path, name, version, text, exit_code, message
):
    file = names_file(tmp_path, text)

    result = run(name, version, "--map", file, "--models-dir", models_dir)

    assert (result.exit_code, message in result.stderr) == (exit_code, True)
    assert find_versions(models_dir) == {"tiny": [1]}


def test_missing_file_is_named(models_dir, tmp_path):
    result = run("tiny", "1", "--map", tmp_path / "none.json", "--models-dir", models_dir)

    assert result.exit_code == 1
    assert f"{tmp_path / 'none.json'}: No such file or directory" in result.stderr


def test_corrupt_version_is_refused(models_dir, tmp_path):
    (models_dir / "tiny" / "1" / "model.onnx").write_bytes(b"corrupt")

    file = names_file(tmp_path, '{"red": "rot"}')
    result = run("tiny", "1", "--map", file, "--models-dir", models_dir)

    assert result.exit_code == 1
    assert "tiny/1: model.onnx is not the file that was published" in result.stderr

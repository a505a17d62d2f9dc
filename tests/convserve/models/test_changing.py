"""The verbs that change what is served, with versions that cannot be served."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.repository.file import REPOSITORY_FILE
from tests import tinymodel
from tests.convserve.models.test_group import run


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    for number in (1, 2, 3):
        tinymodel.write_version(tmp_path, "cats", number)
    tinymodel.write_version(tmp_path, "dogs")
    (tmp_path / REPOSITORY_FILE).write_text('default = "dogs"\n')
    return tmp_path


def break_graph(models_dir: Path, *numbers: int) -> None:
    for number in numbers:
        (models_dir / "cats" / str(number) / "model.onnx").write_bytes(b"broken")


def test_default_that_cannot_answer_is_refused(models_dir):
    break_graph(models_dir, 1, 2, 3)

    result = run("default", "cats", "--models-dir", models_dir)

    assert result.exit_code == 1
    assert "cats cannot answer: cats/3: model.onnx is not the file" in result.stderr
    assert (models_dir / REPOSITORY_FILE).read_text() == 'default = "dogs"\n'


def test_default_whose_newest_version_is_broken_is_written(models_dir):
    break_graph(models_dir, 3)

    result = run("default", "cats", "--models-dir", models_dir)

    assert result.exit_code == 0, result.output
    assert (models_dir / REPOSITORY_FILE).read_text() == 'default = "cats"\n'


def test_version_that_replaces_a_broken_loaded_one_is_not_removed(models_dir):
    (models_dir / REPOSITORY_FILE).write_text("[models.cats]\nload = { newest = 2 }\n")
    break_graph(models_dir, 2)  # so a service loads 3 and 1

    for arguments in (("remove", "cats", "1", "--yes"), ("gc", "--keep", "1")):
        result = run(*arguments, "--models-dir", models_dir)

        assert result.exit_code == 1
        assert "cats/2: model.onnx is not the file" in result.stderr
    assert (models_dir / "cats" / "1").exists()


def test_nothing_is_removed_of_a_model_whose_pinned_version_is_broken(models_dir):
    (models_dir / REPOSITORY_FILE).write_text("[models.cats]\nanswer = 3\n")
    (models_dir / "cats" / "3" / "manifest.json").write_text("{")  # so a service keeps what it has

    removed = run("remove", "cats", "1", "--yes", "--models-dir", models_dir)
    cleaned = run("gc", "--keep", "1", "--models-dir", models_dir)

    assert "may be what a service still answers with" in removed.stderr
    assert cleaned.output == "There is nothing to delete.\n"
    assert (models_dir / "cats" / "1").exists()

"""What is seen of a model repository without reading it, in whatever state the folders are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.models.snapshot import snapshot
from tests import tinymodel


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    tinymodel.write_version(tmp_path / "models")
    return tmp_path / "models"


def seen(models_dir: Path) -> object:
    return snapshot(models_dir, models_dir / "repository.toml")


def test_target_of_a_linked_repository_file_counts(models_dir):
    # As Kubernetes updates a ConfigMap: the link in the folder stays, the one it leads through moves.
    for revision, text in (("..1", 'default = "tiny"\n'), ("..2", "")):
        (models_dir / revision).mkdir()
        (models_dir / revision / "repository.toml").write_text(text)
    (models_dir / "..data").symlink_to("..1")
    (models_dir / "repository.toml").symlink_to("..data/repository.toml")
    before = seen(models_dir)

    (models_dir / "..new").symlink_to("..2")
    (models_dir / "..new").rename(models_dir / "..data")

    assert seen(models_dir) != before


def test_folder_that_can_be_listed_but_not_entered_is_seen(models_dir, monkeypatch):
    folder = models_dir / "tiny" / "1"
    before = seen(models_dir)
    found = Path.stat

    def stat(path: Path, **options: bool) -> os.stat_result:
        if folder in path.parents:
            raise PermissionError(13, "Permission denied")
        return found(path, **options)

    monkeypatch.setattr(Path, "stat", stat)

    assert seen(models_dir) != before


def test_link_to_itself_in_place_of_a_model_is_seen(models_dir):
    before = seen(models_dir)
    (models_dir / "loop").symlink_to("loop")

    assert seen(models_dir) != before


def test_folders_nested_more_deeply_than_calls_are_seen(models_dir):
    before = seen(models_dir)
    nested = [models_dir / "tiny" / "1"]
    for _ in range(1_100):
        nested.append(nested[-1] / "d")
        nested[-1].mkdir()
    try:
        assert seen(models_dir) != before
    finally:
        for folder in reversed(nested[1:]):  # pytest could not delete them
            folder.rmdir()

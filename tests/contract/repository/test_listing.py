"""What is found in a model repository: nothing that cannot be read counts as absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from contract.errors import RepositoryUnreadable
from contract.repository.listing import holds_versions, list_repository
from tests.contract.manifests import fields, write_manifest, write_version


def deny(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    listed = Path.iterdir

    def refuse(path: Path) -> object:
        if path.name == name:
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)


def test_versions_are_listed_by_number_with_their_manifests(tmp_path):
    for number in (10, 2):
        folder = tmp_path / "colours" / str(number)
        folder.mkdir(parents=True)
        write_manifest(folder, json.dumps(fields(version=number)))
    found = list_repository(tmp_path)
    assert found.names == ["colours"]
    assert list(found.models["colours"]) == [2, 10]
    one = found.models["colours"][10]
    assert one.problem is None
    assert one.manifest is not None
    assert one.manifest.version == 10


def test_what_is_no_version_is_left_out(tmp_path):
    home = write_version(tmp_path).parent
    (home / "2").mkdir()  # nothing copied yet
    (home / "3").touch()
    (home / "notes").mkdir()
    (home / ".publishing-x" / "3").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "repository.toml").touch()
    (tmp_path / os.fsdecode(b"\xff") / "1").mkdir(parents=True)
    (tmp_path / os.fsdecode(b"\xff") / "1" / "manifest.json").touch()
    found = list_repository(tmp_path)
    assert found.names == ["colours"]
    assert list(found.models["colours"]) == [1]


def test_a_broken_manifest_is_listed_with_the_reason(tmp_path):
    folder = write_version(tmp_path)
    (folder / "manifest.json").write_text("{")
    one = list_repository(tmp_path).models["colours"][1]
    assert one.manifest is None
    assert "colours/1" in str(one.problem)


def test_a_model_that_cannot_be_followed_is_listed_as_unreadable(tmp_path):
    (tmp_path / "cats").symlink_to("cats")  # a link to itself
    found = list_repository(tmp_path)
    assert found.names == ["cats"]
    assert found.unreadable["cats"].startswith(str(tmp_path / "cats"))


def test_a_version_without_a_manifest_is_listed_with_the_reason(tmp_path):
    folder = tmp_path / "colours" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").touch()
    (tmp_path / "colours" / "2").symlink_to("gone")
    found = list_repository(tmp_path).models["colours"]
    assert {number: one.problem for number, one in found.items()} == {
        1: "colours/1: manifest.json is missing",
        2: "colours/2: manifest.json is missing",
    }


def test_a_link_to_a_missing_folder_is_listed_as_unreadable(tmp_path):
    (tmp_path / "cats").symlink_to(tmp_path / "unmounted")
    found = list_repository(tmp_path)
    assert found.unreadable == {"cats": f"{tmp_path / 'cats'}: No such file or directory"}


def test_a_repository_file_that_leads_nowhere_is_no_model(tmp_path):
    write_version(tmp_path)
    (tmp_path / "repository.toml").symlink_to("gone.toml")
    assert list_repository(tmp_path).names == ["colours"]


def test_a_folder_that_cannot_be_listed_keeps_its_model(tmp_path, monkeypatch):
    write_version(tmp_path)
    deny(monkeypatch, "colours")
    found = list_repository(tmp_path)
    assert found.unreadable == {"colours": f"{tmp_path / 'colours'}: Permission denied"}


def test_a_folder_that_cannot_be_listed_and_that_no_model_can_be_named_after_is_no_model(
    tmp_path, monkeypatch
):
    write_version(tmp_path)
    (tmp_path / "lost+found").mkdir()
    deny(monkeypatch, "lost+found")
    assert list_repository(tmp_path).names == ["colours"]


def test_a_missing_repository_is_an_error(tmp_path):
    with pytest.raises(RepositoryUnreadable, match="missing: No such file or directory"):
        list_repository(tmp_path / "missing")


def test_repository_holds_versions_also_if_they_are_broken(tmp_path, monkeypatch):
    monkeypatch.setattr("contract.repository.listing.read_manifest", None)  # no manifest is read
    empty = holds_versions(tmp_path)
    (tmp_path / "colours" / "1").mkdir(parents=True)
    with_an_empty_folder = holds_versions(tmp_path)
    (tmp_path / "colours" / "1" / "manifest.json").write_text("{", encoding="utf-8")

    assert (empty, with_an_empty_folder, holds_versions(tmp_path)) == (False, False, True)


def test_repository_whose_model_cannot_be_listed_holds_versions(tmp_path, monkeypatch):
    write_version(tmp_path)
    deny(monkeypatch, "colours")

    assert holds_versions(tmp_path)

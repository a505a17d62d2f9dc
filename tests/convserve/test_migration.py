from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from contract.errors import ModelError
from contract.manifest import MANIFEST_FILE
from contract.upgrades import SCHEMA_VERSION
from contract.versions import find_versions, read_layers, read_version, seal, sha256
from convserve import migration
from convserve.commands import convserve
from convserve.migration import migrate
from convserve.versions import republish
from service.models.repository import EngineConfig
from tests import tinymodel

VERSION_1 = Path(__file__).parents[1] / "contract" / "manifest_v1" / "digits"
CONFIG = EngineConfig("cpu", max_batch_size=2)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(convserve, [str(one) for one in ("models", *arguments)])


def contents_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """Holds digits/1, as it was committed with a manifest of version 1."""
    shutil.copytree(VERSION_1, tmp_path / "digits")
    return tmp_path


def test_migrate_writes_the_next_version_and_leaves_the_old_one(models_dir):
    before = contents_of(models_dir / "digits" / "1")

    assert migrate(models_dir, "digits", 1, CONFIG) == 2

    assert find_versions(models_dir) == {"digits": [1, 2]}
    assert contents_of(models_dir / "digits" / "1") == before
    assert read_version(models_dir, "digits", 2).schema_version == SCHEMA_VERSION


def test_migrated_version_differs_in_its_manifest_only(models_dir):
    migrate(models_dir, "digits", 1, CONFIG)

    old, new = (read_version(models_dir, "digits", number) for number in (1, 2))
    assert new.contents == old.contents
    changed = {"version", "created_at", "provenance"}
    assert new.manifest.model_dump(exclude=changed) == old.manifest.model_dump(exclude=changed)


def test_migrated_version_says_where_it_comes_from(models_dir):
    migrate(models_dir, "digits", 1, CONFIG)

    old, new = (read_version(models_dir, "digits", number) for number in (1, 2))
    origin = new.manifest.provenance.migrated_from
    assert origin
    assert (origin.version, origin.schema_version) == (1, 1)
    assert origin.manifest_sha256 == old.manifest_sha256
    kept = new.manifest.provenance.model_copy(update={"migrated_from": None})
    assert kept == old.manifest.provenance
    assert new.manifest.created_at > old.manifest.created_at


def test_migrate_takes_the_next_free_number(models_dir):
    shutil.copytree(models_dir / "digits" / "1", models_dir / "digits" / "7")

    assert migrate(models_dir, "digits", 1, CONFIG) == 8


def test_migrate_of_the_newest_schema_version_does_nothing(models_dir):
    tinymodel.write_version(models_dir)

    assert migrate(models_dir, "tiny", 1, CONFIG) is None
    assert find_versions(models_dir)["tiny"] == [1]


def test_migrate_that_fails_verification_leaves_nothing(models_dir, monkeypatch):
    def fail(*_: object) -> None:
        raise ModelError("made up")

    monkeypatch.setattr(republish, "load_version", fail)

    with pytest.raises(ModelError, match="made up"):
        migrate(models_dir, "digits", 1, CONFIG)

    assert [path.name for path in (models_dir / "digits").iterdir()] == ["1"]


def test_migrate_of_a_corrupt_version_is_refused(models_dir):
    (models_dir / "digits" / "1" / "model.onnx").write_bytes(b"corrupt")

    with pytest.raises(ModelError, match=r"digits/1: model\.onnx"):
        migrate(models_dir, "digits", 1, CONFIG)


def test_migrate_keeps_the_graph_of_the_layers(tmp_path, monkeypatch):
    """As a later schema version will have to."""
    extra = {"layers.onnx": b"layers"}
    manifest = tinymodel.write_version(tmp_path)
    folder = tmp_path / "tiny" / "1"
    document = json.loads((folder / MANIFEST_FILE).read_bytes())
    document["layers"] = {"file": "layers.onnx", "outputs": [{"name": "a", "operator": "Mul"}]}
    document["files"] |= {path: sha256(data) for path, data in extra.items()}
    text = json.dumps(document).encode()
    (folder / MANIFEST_FILE).write_bytes(text)
    (folder / "manifest.sha256").write_bytes(seal(text))
    for path, data in extra.items():
        (folder / path).write_bytes(data)
    monkeypatch.setattr(migration, "SCHEMA_VERSION", SCHEMA_VERSION + 1)

    assert migrate(tmp_path, "tiny", 1, CONFIG) == 2

    found = read_version(tmp_path, "tiny", 2).manifest
    assert read_layers(tmp_path, found) == b"layers"
    assert found.files == manifest.files | {path: sha256(data) for path, data in extra.items()}


def test_command_migrates_the_newest_version_of_every_model(models_dir):
    tinymodel.write_version(models_dir)

    result = run("migrate", "--models-dir", models_dir)

    assert (result.exit_code, result.output) == (
        0,
        "migrated  digits/1 to digits/2\n"
        "          A service that reads this folder serves digits/2 within 5 s (models_poll_s). "
        "No default model is set, so requests that name no model get 404; "
        "`convserve models default NAME` sets one.\n"
        "current   tiny/1: schema version 2\n",
    )


def test_command_migrates_the_named_models_only(models_dir):
    tinymodel.write_version(models_dir)

    result = run("--models-dir", models_dir, "migrate", "tiny")

    assert result.output == "current   tiny/1: schema version 2\n"
    assert find_versions(models_dir)["digits"] == [1]


def test_command_reports_a_model_that_fails_and_migrates_the_others(models_dir):
    shutil.copytree(models_dir / "digits", models_dir / "corrupt")

    result = run("migrate", "--models-dir", models_dir)

    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0].startswith("FAILED    corrupt/1: ")
    assert "migrated  digits/1 to digits/2" in lines


@pytest.mark.parametrize(
    ("folder", "names", "message"),
    [
        ("", ["other"], "no model 'other'; there are: digits"),
        ("digits", [], "no model versions found"),
    ],
    ids=["name", "folder"],
)
def test_command_that_finds_nothing_says_so(models_dir, folder, names, message):
    result = run("migrate", *names, "--models-dir", models_dir / folder)

    assert result.exit_code == 1
    assert message in result.stderr


def test_a_model_that_is_named_twice_is_migrated_once(models_dir):
    result = run("migrate", "digits", "digits", "--models-dir", models_dir)

    assert result.exit_code == 0
    assert find_versions(models_dir) == {"digits": [1, 2]}

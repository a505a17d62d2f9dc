import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from contract.errors import VersionRemoved
from contract.preprocessing import golden_inputs
from contract.repository.numbers import NUMBERS_FILE
from contract.repository.publishing import STAGING_PREFIX
from contract.versions import find_versions, read_version
from tests.training.helpers import tinynet
from training.data.pictures import Picture
from training.errors import VersionExists, VersionUnproven
from training.release import publish as publish_module
from training.release.golden import make_golden
from training.release.publish import (
    check_free,
    publish,
    verify_version,
)

PICTURE = Picture("red.png", tinynet.picture("red"))


@pytest.fixture
def finished(tiny_graph):
    """Returns a function that makes a manifest and its files, as an import does at its end."""

    def make(golden=None, version=1):
        draft = replace(tinynet.draft(tiny_graph), version=version)
        golden = make_golden(draft, [PICTURE], max_batch=2) if golden is None else golden
        files = {"model.onnx": tiny_graph, "golden/red.png": PICTURE.data, "MODEL_CARD.md": b"#"}
        return draft.to_manifest(golden, files), files

    return make


def test_publish_writes_a_version_that_the_contract_can_read(tmp_path, finished):
    manifest, files = finished()

    folder = publish(tmp_path / "new" / "models", manifest, files)

    assert folder == tmp_path / "new" / "models" / "tiny" / "1"
    version = read_version(tmp_path / "new" / "models", "tiny", 1)
    assert dict(version.contents) == files
    assert version.manifest == manifest
    assert {path.name for path in folder.parent.iterdir()} == {"1", NUMBERS_FILE}


def test_publish_never_overwrites(tmp_path, finished):
    manifest, files = finished()
    publish(tmp_path, manifest, files)
    before = (tmp_path / "tiny" / "1" / "manifest.json").stat().st_mtime_ns

    with pytest.raises(VersionExists):
        publish(tmp_path, manifest, files)

    assert (tmp_path / "tiny" / "1" / "manifest.json").stat().st_mtime_ns == before
    assert {path.name for path in (tmp_path / "tiny").iterdir()} == {"1", NUMBERS_FILE}


@pytest.mark.parametrize(
    "step",
    [
        "contract.repository.publishing._write",
        "training.release.publish.verify_version",
        "contract.repository.publishing._swap_in",
    ],
)
def test_publish_that_fails_midway_leaves_nothing(tmp_path, finished, monkeypatch, step):
    manifest, files = finished()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(step, fail)

    with pytest.raises(OSError, match="disk full"):
        publish(tmp_path, manifest, files)

    assert list(tmp_path.rglob("*")) == []


def test_publish_with_replace_that_fails_midway_keeps_the_old_version(
    tmp_path, finished, monkeypatch
):
    manifest, files = finished()
    publish(tmp_path, manifest, files)
    old = read_version(tmp_path, "tiny", 1).manifest_sha256
    rename = Path.rename

    def fail_into_place(self, target):
        if STAGING_PREFIX in str(self) and STAGING_PREFIX not in str(target) and self.name == "1":
            raise OSError("cannot rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_into_place)

    with pytest.raises(OSError, match="cannot rename"):
        publish(tmp_path, manifest, files, replace=True)

    assert read_version(tmp_path, "tiny", 1).manifest_sha256 == old


def test_reader_during_publishing_sees_no_partial_version(tmp_path, finished, monkeypatch):
    manifest, files = finished()
    seen = []
    verify_really = publish_module.verify_version

    def record(models_dir, name, version):
        seen.append(find_versions(tmp_path))
        return verify_really(models_dir, name, version)

    monkeypatch.setattr(publish_module, "verify_version", record)

    publish(tmp_path, manifest, files)

    assert seen == [{}]
    assert find_versions(tmp_path) == {"tiny": [1]}


def test_publish_flushes_every_file_before_the_rename(tmp_path, finished, monkeypatch):
    manifest, files = finished()
    flushed = []
    fsync = os.fsync

    def record(descriptor):
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)

    publish(tmp_path, manifest, files)

    assert {"model.onnx", "manifest.json", "red.png", "MODEL_CARD.md", "golden"} <= set(flushed)
    assert flushed.index("tiny") > flushed.index("model.onnx")  # the folder of the rename


def test_verify_version_refuses_a_version_with_wrong_golden_answers(tmp_path, finished):
    manifest, files = finished()
    (example,) = manifest.golden
    first = example.top5[0].model_copy(update={"probability": 0.1})
    wrong = example.model_copy(update={"top5": (first, *example.top5[1:])})
    manifest, files = finished(golden=(wrong,))

    with pytest.raises(VersionUnproven, match="a probability differs"):
        publish(tmp_path, manifest, files)

    assert list(tmp_path.rglob("*")) == []


def test_verify_version_refuses_a_version_that_is_served_differently(
    tmp_path, finished, monkeypatch
):
    whole = golden_inputs

    def darker_in_requests(data, interface):
        exact, _ = whole(data, interface)
        return exact, exact // 2

    manifest, files = finished()
    monkeypatch.setattr("training.release.publish.golden_inputs", darker_in_requests)

    with pytest.raises(VersionUnproven, match=r"a probability differs by .* as a request"):
        publish(tmp_path, manifest, files)


def test_verify_version_refuses_a_version_whose_file_was_changed(tmp_path, finished):
    manifest, files = finished()
    publish(tmp_path, manifest, files)
    (tmp_path / "tiny" / "1" / "MODEL_CARD.md").write_text("changed")

    with pytest.raises(VersionUnproven, match="SHA-256"):
        verify_version(tmp_path, "tiny", 1)


def test_draft_that_contradicts_itself_is_refused(finished):
    with pytest.raises(VersionUnproven, match="contradicts itself"):
        finished(golden=())


def test_publish_says_what_a_service_will_do(tmp_path, finished, caplog):
    caplog.set_level("INFO")

    publish(tmp_path, *finished())

    assert "A service that reads this folder serves tiny/1 within 5 s" in caplog.text


@pytest.mark.parametrize("replace", [False, True])
def test_a_number_that_was_removed_is_refused(tmp_path, finished, replace):
    shutil.rmtree(publish(tmp_path, *finished()))

    with pytest.raises(VersionExists, match=r"tiny/1 was removed; .* the next is 2"):
        check_free(tmp_path, "tiny", 1, replace=replace)
    with pytest.raises(VersionRemoved):
        publish(tmp_path, *finished(), replace=replace)


def test_check_free_with_replace_allows_an_existing_version(tmp_path):
    (tmp_path / "tiny" / "1").mkdir(parents=True)

    check_free(tmp_path, "tiny", 1, replace=True)
    with pytest.raises(VersionExists, match=r"leave out --version .* or pass --replace"):
        check_free(tmp_path, "tiny", 1, replace=False)


def test_check_free_advises_no_option_that_the_command_lacks(tmp_path):
    (tmp_path / "tiny" / "1").mkdir(parents=True)

    with pytest.raises(VersionExists, match=r"leave out --version for the next free number$"):
        check_free(tmp_path, "tiny", 1, replace=False, can_replace=False)

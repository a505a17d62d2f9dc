import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import contract.versions
from contract.errors import ManifestInvalid, VersionCorrupt
from contract.versions import find_versions, read_layers, read_manifest, read_version, sha256
from tests.contract.manifests import (
    GRAPH,
    PICTURE,
    changed,
    fields,
    sha,
    write_manifest,
    write_version,
)
from tests.pictures import flip_bit

FILES = ("manifest.json", "manifest.sha256", "model.onnx", "golden/red.png")


@pytest.fixture
def models(tmp_path):
    write_version(tmp_path)
    return tmp_path


@pytest.fixture
def folder(models):
    return models / "colours" / "1"


def test_read_version_returns_the_bytes(models, folder):
    version = read_version(models, "colours", 1)

    assert version.graph == GRAPH
    assert dict(version.contents) == {"model.onnx": GRAPH, "golden/red.png": PICTURE}
    assert version.manifest_sha256 == sha((folder / "manifest.json").read_bytes())


def test_read_version_contents_cannot_be_changed(models):
    version = read_version(models, "colours", 1)

    with pytest.raises(TypeError):
        version.contents["model.onnx"] = b"other"  # type: ignore[index]


def test_read_version_file_swapped_afterwards_changes_nothing(models, folder):
    version = read_version(models, "colours", 1)

    (folder / "model.onnx").write_bytes(b"swapped")

    assert version.graph == GRAPH


def test_read_version_reads_every_file_once(models, monkeypatch):
    read = []
    open_file = os.open

    def record(path, *arguments):
        read.append(Path(path).name)
        return open_file(path, *arguments)

    monkeypatch.setattr(os, "open", record)

    read_version(models, "colours", 1)

    assert sorted(read) == ["manifest.json", "manifest.sha256", "model.onnx", "red.png"]


@pytest.mark.parametrize("path", FILES)
def test_read_version_flipped_bit_is_refused(models, folder, path):
    original = (folder / path).read_bytes()

    for position in np.random.default_rng(3).integers(0, len(original) * 8, 60):
        (folder / path).write_bytes(flip_bit(original, int(position)))
        with pytest.raises(VersionCorrupt, match="colours/1"):
            read_version(models, "colours", 1)


@pytest.mark.parametrize("path", FILES[2:])
@pytest.mark.parametrize("change", ["missing", "empty", "longer", "folder"])
def test_read_version_changed_file_is_refused(models, folder, path, change):
    file = folder / path
    content = file.read_bytes()
    file.unlink()
    if change == "folder":
        file.mkdir()
    elif change != "missing":
        file.write_bytes(b"" if change == "empty" else content + b"\0")

    with pytest.raises(VersionCorrupt, match=path):
        read_version(models, "colours", 1)


@pytest.mark.parametrize(
    "path", ["notes.txt", "golden/more.png", "deep/er/file", ".hidden", "model.onnx~"]
)
def test_read_version_unlisted_file_is_refused(models, folder, path):
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(b"")

    with pytest.raises(VersionCorrupt, match=r"not listed"):
        read_version(models, "colours", 1)


def test_read_version_renamed_file_is_refused(models, folder):
    (folder / "model.onnx").rename(folder / "Model.onnx")

    with pytest.raises(VersionCorrupt, match=r"Model\.onnx is not listed"):
        read_version(models, "colours", 1)


def test_read_version_swapped_files_are_refused(models, folder):
    (folder / "model.onnx").write_bytes(PICTURE)
    (folder / "golden" / "red.png").write_bytes(GRAPH)

    with pytest.raises(VersionCorrupt, match="SHA-256"):
        read_version(models, "colours", 1)


@pytest.mark.parametrize("path", FILES)
def test_read_version_symbolic_link_is_refused(models, folder, path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "file"
    shutil.move(folder / path, elsewhere)
    (folder / path).symlink_to(elsewhere)

    with pytest.raises(VersionCorrupt, match="link or a special file"):
        read_version(models, "colours", 1)


def test_read_version_linked_subfolder_is_refused(models, folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "golden"
    shutil.move(folder / "golden", elsewhere)
    (folder / "golden").symlink_to(elsewhere)

    with pytest.raises(VersionCorrupt, match="golden is a link"):
        read_version(models, "colours", 1)


@pytest.mark.parametrize("path", FILES)
def test_read_version_pipe_is_refused_without_waiting(models, folder, path):
    (folder / path).unlink()
    os.mkfifo(folder / path)

    with pytest.raises(VersionCorrupt, match="special file"):
        read_version(models, "colours", 1)


def test_read_version_hard_link_with_the_right_bytes_is_accepted(models, folder, tmp_path_factory):
    # Versions can share equal files through hard links: the bytes are the published ones.
    os.link(folder / "model.onnx", tmp_path_factory.mktemp("store") / "model.onnx")

    assert read_version(models, "colours", 1).graph == GRAPH


def test_read_version_empty_subfolder_is_accepted(models, folder):
    (folder / "empty").mkdir()

    assert read_version(models, "colours", 1).graph == GRAPH


@pytest.mark.parametrize("name", ["manifest.json", None], ids=["manifest", "version"])
def test_read_version_missing_is_refused(models, folder, name):
    if name is None:
        shutil.rmtree(folder)
    else:
        (folder / name).unlink()

    with pytest.raises(ManifestInvalid, match=r"colours/1: manifest\.json is missing"):
        read_version(models, "colours", 1)


def test_read_version_without_the_manifests_digest_is_refused(models, folder):
    (folder / "manifest.sha256").unlink()

    with pytest.raises(VersionCorrupt, match=r"manifest\.sha256 is missing"):
        read_version(models, "colours", 1)


def test_read_version_folder_that_is_a_link_is_refused(models, folder):
    folder.rename(models / "elsewhere")
    folder.symlink_to(models / "elsewhere")

    with pytest.raises(VersionCorrupt, match="the folder is a link"):
        read_version(models, "colours", 1)


def test_read_version_manifest_that_is_a_folder_is_refused(models, folder):
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()

    with pytest.raises(ManifestInvalid, match="is missing"):
        read_version(models, "colours", 1)


@pytest.mark.parametrize(
    "change", [{"name": "other"}, {"version": 2}], ids=["other-name", "other-version"]
)
def test_read_version_manifest_of_another_version_is_refused(tmp_path, change):
    write_version(tmp_path, fields(**change))

    with pytest.raises(ManifestInvalid, match="describes"):
        read_version(tmp_path, "colours", 1)


def test_read_version_invalid_manifest_names_the_version(models, folder):
    write_manifest(folder, "{}")

    with pytest.raises(ManifestInvalid, match=r"^colours/1: manifest\.json: "):
        read_version(models, "colours", 1)


@pytest.mark.parametrize("path", FILES)
def test_read_version_unreadable_file_is_a_model_error(models, path, monkeypatch):
    open_file = os.open

    def deny(file, *arguments):
        if Path(file).name == Path(path).name:
            raise PermissionError
        return open_file(file, *arguments)

    monkeypatch.setattr(os, "open", deny)

    with pytest.raises((ManifestInvalid, VersionCorrupt), match="unreadable"):
        read_version(models, "colours", 1)


SWAPPED = {
    "link": lambda file, outside: file.symlink_to(outside),
    "pipe": lambda file, _: os.mkfifo(file),
    "other_bytes": lambda file, _: file.write_bytes(b"other"),
}


@pytest.mark.parametrize("swap", SWAPPED)
def test_read_version_file_swapped_after_the_listing_is_refused(models, folder, monkeypatch, swap):
    # Files can change between listing and reading.
    listing, outside = contract.versions._regular_files, models / "outside"
    outside.write_bytes(GRAPH)

    def list_then_swap(*args):
        found = listing(*args)
        (folder / "model.onnx").unlink()
        SWAPPED[swap](folder / "model.onnx", outside)
        return found

    monkeypatch.setattr(contract.versions, "_regular_files", list_then_swap)

    with pytest.raises(VersionCorrupt, match=r"colours/1: model\.onnx"):
        read_version(models, "colours", 1)


SPARSE_BYTES = 32 * 2**30  # takes no space on the disk


@pytest.mark.parametrize("path", FILES)
def test_read_version_huge_file_is_refused_before_it_is_read(models, folder, path, monkeypatch):
    monkeypatch.setattr(os, "open", None)  # cannot be called
    os.truncate(folder / path, SPARSE_BYTES)

    with pytest.raises(VersionCorrupt, match=f"{path} has 34,359,738,368 bytes, the limit is"):
        read_version(models, "colours", 1)


def test_read_version_files_that_are_huge_together_are_refused(models, folder, monkeypatch):
    for number in range(3):
        (folder / f"{number}.bin").touch()
        os.truncate(folder / f"{number}.bin", 2**31)
    monkeypatch.setattr(os, "open", None)  # cannot be called

    with pytest.raises(VersionCorrupt, match="all files have 6,442,4"):
        read_version(models, "colours", 1)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
@pytest.mark.parametrize("read", [read_version, read_manifest])
def test_large_manifest_is_refused(models, folder, name, read):
    os.truncate(folder / name, 2**24 + 1)

    with pytest.raises((ManifestInvalid, VersionCorrupt), match=rf"colours/1: {name}"):
        read(models, "colours", 1)


def test_file_that_grew_after_the_listing_is_refused(models, folder, monkeypatch):
    listing = contract.versions._regular_files

    def list_then_grow(*args):
        found = listing(*args)
        os.truncate(folder / "model.onnx", SPARSE_BYTES)
        return found

    monkeypatch.setattr(contract.versions, "_regular_files", list_then_grow)

    with pytest.raises(VersionCorrupt, match=r"model\.onnx has 34,359,738,368 bytes"):
        read_version(models, "colours", 1)


HOSTILE = {
    "deep_lists": "[" * 100_000 + "]" * 100_000,
    "deep_objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "many_digits": f'{{"schema_version": {"9" * 5000}}}',
    "digits_below_the_limit_of_python": f'{{"schema_version": {"9" * 4000}}}',
    "infinite": '{"schema_version": 1e999}',
    "no_text": "\0" * 1000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("read", [read_version, read_manifest])
def test_hostile_manifest_is_refused(models, folder, text, read):
    write_manifest(folder, text)

    with pytest.raises(ManifestInvalid, match=r"colours/1: manifest\.json: "):
        read(models, "colours", 1)


def test_read_version_with_numbers_of_many_digits_is_a_model_error(models, folder):
    text = json.dumps(changed("provenance.seed", 0)).replace('"seed": 0', f'"seed": {"9" * 5000}')
    write_manifest(folder, text)

    with pytest.raises(ManifestInvalid, match="colours/1"):
        read_version(models, "colours", 1)


def test_read_manifest_reads_no_other_file(models, folder):
    (folder / "model.onnx").unlink()

    manifest, digest = read_manifest(models, "colours", 1)

    assert (manifest.name, manifest.version) == ("colours", 1)
    assert digest == sha((folder / "manifest.json").read_bytes())


def test_read_manifest_of_another_version_is_refused(tmp_path):
    write_version(tmp_path, fields(version=2))

    with pytest.raises(ManifestInvalid, match="describes"):
        read_manifest(tmp_path, "colours", 1)


def test_find_versions_sorts_by_number(tmp_path):
    for name, number in (("b", "10"), ("b", "9"), ("a", "1")):
        (tmp_path / name / number).mkdir(parents=True)
        (tmp_path / name / number / "manifest.json").write_text("")

    assert find_versions(tmp_path) == {"a": [1], "b": [9, 10]}


@pytest.mark.parametrize(
    "path",
    [
        ".publishing/1",
        "colours/.tmp",
        "colours/latest",
        "colours/1a",
        "colours/-1",
        "colours/٣",
        "colours/01",
        "colours/0",
        "a/b/1",
    ],
)
def test_find_versions_ignores_everything_else(tmp_path, path):
    (tmp_path / path).mkdir(parents=True)
    (tmp_path / path / "manifest.json").write_text("")

    assert find_versions(tmp_path) == {}


def test_find_versions_ignores_a_version_without_manifest(models, folder):
    (folder / "manifest.json").unlink()

    assert find_versions(models) == {}


def test_find_versions_of_a_missing_folder_is_empty(tmp_path):
    assert find_versions(tmp_path / "missing") == {}


def test_sha256_is_hexadecimal():
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# The graph of the layers


LAYERS = b"the graph of the layers"


@pytest.fixture
def with_layers(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["layers"] = {"file": "layers.onnx", "outputs": [{"name": "a", "operator": "Conv"}]}
    manifest["files"]["layers.onnx"] = sha(LAYERS)
    write_manifest(folder, json.dumps(manifest))
    (folder / "layers.onnx").write_bytes(LAYERS)
    return folder


@pytest.mark.usefixtures("with_layers")
def test_read_version_leaves_the_graph_of_the_layers_on_the_disk(models):
    found = read_version(models, "colours", 1)

    assert "layers.onnx" not in found.contents
    assert read_layers(models, found.manifest) == LAYERS


@pytest.mark.parametrize("content", [b"another graph", None], ids=["other", "missing"])
def test_graph_of_the_layers_that_was_not_published_is_refused(models, with_layers, content):
    manifest = read_version(models, "colours", 1).manifest
    (with_layers / "layers.onnx").unlink()
    if content is not None:
        (with_layers / "layers.onnx").write_bytes(content)

    for read in (lambda: read_version(models, "colours", 1), lambda: read_layers(models, manifest)):
        with pytest.raises(VersionCorrupt, match=r"colours/1: layers\.onnx is"):
            read()


def test_read_layers_of_a_version_without_them_is_none(models):
    assert read_layers(models, read_version(models, "colours", 1).manifest) is None


def test_read_version_with_a_folder_that_cannot_be_listed_refused(models, folder, monkeypatch):
    denied = folder / "golden"
    scandir = os.scandir

    def scan(path: str) -> object:
        if Path(path) == denied:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)

    with pytest.raises(
        VersionCorrupt, match="colours/1: a folder cannot be listed: Permission denied"
    ):
        read_version(models, "colours", 1)

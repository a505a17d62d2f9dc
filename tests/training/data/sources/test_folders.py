import os

import pytest

from tests.training.helpers.picture_sets import label_names, sample_names, write
from training.data.sources.find import find
from training.errors import DataRefused


def test_find_in_split_folders_of_any_spelling(tmp_path):
    write(tmp_path, "Train/cat/1.jpg", "VALID/dog/2.png", "testing/cat/deep/er/3.JPEG")

    found = find(str(tmp_path), cache_dir=tmp_path)

    assert sample_names(found) == [
        "testing/cat/deep/er/3.JPEG",
        "Train/cat/1.jpg",
        "VALID/dog/2.png",
    ]
    assert found.splits == ("test", "train", "validation")
    assert [sample.index for sample in found.samples] == [0, 0, 1]
    assert label_names(found) == ["cat", "dog"]
    assert found.given_splits == {"train", "validation", "test"}


def test_find_in_class_folders_gives_no_splits(tmp_path):
    write(tmp_path / "pets", "dog/1.jpg", "cat/1.jpg")

    found = find(str(tmp_path / "pets"), cache_dir=tmp_path)

    assert found.name == "pets"
    assert sample_names(found) == ["cat/1.jpg", "dog/1.jpg"]
    assert found.splits == (None, None)
    assert found.given_splits == set()


def test_find_reports_what_it_skips(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "train/loose.jpg", "extra/cat/9.jpg")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "train" / "fish").mkdir()
    (tmp_path / "LICENSE").write_text("x")

    found = find(str(tmp_path), cache_dir=tmp_path)

    assert sample_names(found) == ["train/cat/1.jpg", "train/dog/1.jpg"]
    assert found.empty == ("train/fish",)
    assert label_names(found) == ["cat", "dog", "fish"]
    assert found.skipped == {
        "a folder beside the splits": ("extra",),
        "a picture outside the class folders": ("train/loose.jpg",),
        "not a picture": ("train/cat/notes.txt", "LICENSE"),
    }


def test_find_ignores_hidden_files_and_leftovers_of_archivers(tmp_path):
    write(tmp_path, "cat/1.jpg", "dog/1.jpg", "__MACOSX/cat/1.jpg", ".git/x.jpg", "cat/.hidden.jpg")
    write(tmp_path, "cat/__MACOSX/2.jpg")
    (tmp_path / "cat" / "Thumbs.db").write_text("x")
    (tmp_path / ".DS_Store").write_text("x")

    found = find(str(tmp_path), cache_dir=tmp_path)

    assert sample_names(found) == ["cat/1.jpg", "dog/1.jpg"]
    assert found.skipped == {}


def test_find_follows_no_links_out_of_the_folder(tmp_path):
    write(tmp_path / "secret", "1.jpg")
    root = write(tmp_path / "data", "cat/1.jpg", "dog/1.jpg")
    (root / "cat" / "out.jpg").symlink_to(tmp_path / "secret" / "1.jpg")
    (root / "cat" / "in.jpg").symlink_to(root / "dog" / "1.jpg")
    (root / "cat" / "gone.jpg").symlink_to(root / "none.jpg")
    (root / "cat" / "folder").symlink_to(tmp_path / "secret")
    (root / "bird").symlink_to(tmp_path / "secret")

    found = find(str(root), cache_dir=tmp_path)

    assert sample_names(found) == ["cat/1.jpg", "cat/in.jpg", "dog/1.jpg"]
    assert found.skipped == {
        "a link out of the folder": ("cat/out.jpg",),
        "a link to a folder": ("bird", "cat/folder"),
        "a link to nothing": ("cat/gone.jpg",),
    }


def test_find_in_a_linked_split_is_refused(tmp_path):
    write(tmp_path / "elsewhere", "cat/1.jpg")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(DataRefused, match="train is a link, and links are not followed"):
        find(str(tmp_path / "data"), cache_dir=tmp_path)


def test_find_reports_a_folder_it_cannot_read(tmp_path, monkeypatch):
    write(tmp_path, "cat/1.jpg", "dog/1.jpg")

    def walk(folder, onerror):
        if folder.name == "cat":
            onerror(PermissionError(13, "Permission denied", str(folder / "locked")))
        return iter([(str(folder), [], ["1.jpg"])])

    monkeypatch.setattr(os, "walk", walk)

    found = find(str(tmp_path), cache_dir=tmp_path)

    assert sample_names(found) == ["cat/1.jpg", "dog/1.jpg"]
    assert found.skipped == {"a folder that cannot be read": ("cat/locked",)}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_find_does_not_open_pipes(tmp_path):
    write(tmp_path, "cat/1.jpg")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")

    found = find(str(tmp_path), cache_dir=tmp_path)

    assert sample_names(found) == ["cat/1.jpg"]


@pytest.mark.parametrize("name", ["train", "Test", "val", "dev"])
def test_folder_of_pictures_beside_class_folders_is_a_class_whatever_its_name(tmp_path, name):
    write(tmp_path, f"{name}/1.jpg", "car/1.jpg", "plane/jets/1.jpg")

    found = find(str(tmp_path), cache_dir=tmp_path)

    assert set(label_names(found)) == {name, "car", "plane"}
    assert found.given_splits == set()
    assert found.skipped == {}


def test_class_called_train_inside_a_split_is_a_class(tmp_path):
    write(tmp_path, "train/train/1.jpg", "train/car/1.jpg", "test/train/1.jpg", "test/car/1.jpg")

    found = find(str(tmp_path), cache_dir=tmp_path)

    assert label_names(found) == ["car", "train"]
    assert found.given_splits == {"train", "test"}


def test_unsorted_pictures_of_a_test_split_are_left_out(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "test/1.jpg")

    found = find(str(tmp_path), cache_dir=tmp_path)

    assert label_names(found) == ["cat", "dog"]
    assert found.skipped == {"a picture outside the class folders": ("test/1.jpg",)}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/1.jpg"], "train holds pictures and no class folders; if this is a split, move"),
        (["train/1.jpg", "test/1.jpg"], "test and train hold pictures and no class folders"),
        (["train/1.jpg", "test/1.jpg", "car/1.jpg"], "if it is a class, move all class folders"),
        (["train/1.jpg", "val/cat/1.jpg"], "train holds pictures and no class folders"),
        (["train/steam/1.jpg", "car/1.jpg"], "train holds folders, and car holds pictures and no"),
    ],
)
def test_folder_that_may_be_a_split_or_a_class_is_refused_with_both_ways_out(
    tmp_path, files, message
):
    write(tmp_path / "data", *files)

    with pytest.raises(DataRefused, match=message) as caught:
        find(str(tmp_path / "data"), cache_dir=tmp_path)

    assert "if it is a class, move all class folders into one folder called train" in str(
        caught.value
    )


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "JPG", "Jpeg", "WEBP", "dib"])
def test_find_takes_every_suffix_of_a_format_in_any_case(tmp_path, suffix):
    write(tmp_path, f"cat/1.{suffix}", "dog/1.jpg")

    assert sample_names(find(str(tmp_path), cache_dir=tmp_path)) == [f"cat/1.{suffix}", "dog/1.jpg"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["val/cat", "test/cat"], "has test, val but no train folder"),
        (["train/cat", "val/cat", "valid/cat"], "val and valid both hold validation pictures"),
        ([], r"no class folders; expected data/train/<label>/<picture>"),
        (["inner/train/cat"], "data/inner contains train; give data/inner"),
        (["cat/train", "cat/val", "dog/train"], "put the splits above the labels: data/train/cat"),
    ],
    ids=["no-train", "two-validations", "nothing", "one-level-too-high", "upside-down"],
)
def test_find_in_a_folder_with_the_wrong_layout_is_refused(tmp_path, folders, message):
    root = tmp_path / "data"
    root.mkdir()
    for folder in folders:
        (root / folder).mkdir(parents=True)

    with pytest.raises(DataRefused, match=message):
        find(str(root), cache_dir=tmp_path)

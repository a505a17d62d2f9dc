import pytest

from tests.training.helpers.picture_sets import label_names, sample_names, write
from training.data.sources.catalogue import natural_key
from training.data.sources.find import find
from training.errors import DataRefused


def test_find_orders_labels_and_pictures_naturally(tmp_path):
    write(tmp_path, "10/a.jpg", "9/a10.jpg", "9/a9.jpg", "b/1.jpg", "A/1.jpg")

    found = find(str(tmp_path), cache_dir=tmp_path)

    assert label_names(found) == ["9", "10", "A", "b"]
    assert sample_names(found)[:2] == ["9/a9.jpg", "9/a10.jpg"]


def test_natural_key_orders_names_of_any_script():
    names = ["12" * 50, "a10", "²", "a9", "٣", "", "A1b", "1²3"]

    assert sorted(names, key=natural_key) == ["", "1²3", "12" * 50, "A1b", "a9", "a10", "²", "٣"]


def test_find_merges_label_names_that_differ_in_outer_spaces_only(tmp_path):
    write(tmp_path, "train/cat/1.jpg", "val/cat /2.jpg", "train/dog/3.jpg")

    found = find(str(tmp_path), cache_dir=tmp_path)

    assert label_names(found) == ["cat", "dog"]
    assert found.merged == ("cat", "cat ")


def test_find_in_a_missing_folder_lists_the_possible_sources(tmp_path):
    with pytest.raises(DataRefused, match=r"no such folder; give a folder .* `digits`"):
        find(str(tmp_path / "none"), cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["three.zip", "THREE.ZIP", "three.tar.gz"])
def test_find_tells_to_unpack_an_archive(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")

    with pytest.raises(DataRefused, match=f"{name}: archives are not read; unpack it and give"):
        find(str(tmp_path / name), cache_dir=tmp_path)


def test_find_names_a_file_as_no_folder(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")

    with pytest.raises(DataRefused, match=r"photo.jpg: not a folder; give a folder of class"):
        find(str(tmp_path / "photo.jpg"), cache_dir=tmp_path)


def test_find_expands_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "photos", "a/1.jpg", "b/2.jpg")

    assert label_names(find("~/photos", cache_dir=tmp_path)) == ["a", "b"]


def test_find_refuses_a_label_that_is_too_long(tmp_path):
    write(tmp_path, f"{'x' * 201}/1.jpg")

    with pytest.raises(DataRefused, match="cannot be a label: labels are text of 1 to 200"):
        find(str(tmp_path), cache_dir=tmp_path)


@pytest.mark.parametrize("source", ["https://example.org/photos.zip", "s3://bucket/photos"])
def test_find_of_a_url_is_refused_with_the_way(source, tmp_path):
    with pytest.raises(DataRefused, match="URLs are not fetched; download"):
        find(source, cache_dir=tmp_path)

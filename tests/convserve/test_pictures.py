from __future__ import annotations

from convserve.pictures import SUFFIXES, image_files
from training.data import pictures


def test_image_files_of_a_folder_are_found_in_order_below_it(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("c.JPEG", "b/a.webp", "a.png", "b/notes.txt", "readme"):
        (tmp_path / name).touch()

    found = [str(path.relative_to(tmp_path)) for path in image_files(tmp_path)]

    assert found == ["a.png", "c.JPEG", "b/a.webp"]


def test_image_files_takes_a_named_file_whatever_its_name(tmp_path):
    assert list(image_files(tmp_path / "photo")) == [tmp_path / "photo"]


def test_suffixes_are_those_of_training():
    assert pictures.SUFFIXES == SUFFIXES

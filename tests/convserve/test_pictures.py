from __future__ import annotations

from contract.images import decode
from convserve.pictures import example_folder, image_files, varied_examples
from training.data import pictures


def test_image_files_of_a_folder_are_found_in_order_below_it(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("c.JPEG", "b/a.webp", "a.png", "b/notes.txt", "readme", "d.jfif", "e.JPE"):
        (tmp_path / name).touch()

    found = [str(path.relative_to(tmp_path)) for path in image_files(tmp_path)]

    assert found == ["a.png", "c.JPEG", "d.jfif", "e.JPE", "b/a.webp"]


def test_image_files_yields_a_file_with_any_suffix(tmp_path):
    assert list(image_files(tmp_path / "photo")) == [tmp_path / "photo"]


def test_varied_examples_are_different_photos_of_one_size():
    photos = varied_examples()

    assert len(set(photos)) == len(photos) == 40
    assert {decode(photo).size for photo in photos} == {(500, 375)}
    assert all(photo.startswith(b"\xff\xd8") for photo in photos)


def test_pictures_match_those_of_training():
    assert example_folder() == pictures.example_pictures()

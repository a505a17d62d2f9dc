from __future__ import annotations

import os

import pytest

from contract.images import SUFFIXES
from convserve.loadtest.pictures import NoPictures, Picture, UnreadablePicture, read_pictures


@pytest.fixture
def folder(tmp_path):
    """Five files of ten bytes, four of them pictures by their names."""
    for name in ("b/1.jpg", "b/2.PNG", "a/1.jpg", "c.jfif", "notes.txt"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode().ljust(10))
    return tmp_path / "photos"


def test_read_pictures_of_a_folder_are_named_by_their_path_below_it(folder):
    pictures = read_pictures([folder])

    assert pictures == [
        Picture("c.jfif", b"c.jfif    "),
        Picture("a/1.jpg", b"a/1.jpg   "),
        Picture("b/1.jpg", b"b/1.jpg   "),
        Picture("b/2.PNG", b"b/2.PNG   "),
    ]


def test_read_pictures_reads_a_named_file_whatever_its_suffix(folder):
    assert read_pictures([folder / "notes.txt"]) == [Picture("notes.txt", b"notes.txt ")]


def test_read_pictures_with_one_name_are_named_by_the_path_given(folder):
    pictures = read_pictures([folder / "a", folder / "b"])

    names = [picture.name for picture in pictures]
    assert names == [f"{folder}/a/1.jpg", f"{folder}/b/1.jpg", "2.PNG"]


def test_read_pictures_of_a_folder_without_any_are_refused(folder):
    (folder / "empty").mkdir()

    with pytest.raises(NoPictures) as caught:
        read_pictures([folder, folder / "empty"])

    searched = ", ".join(SUFFIXES)
    assert str(caught.value) == f"{folder}/empty: no {searched} files in this folder"


def test_read_pictures_of_no_path_are_refused():
    with pytest.raises(NoPictures, match="no picture files were given"):
        read_pictures([])


def test_read_pictures_names_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UnreadablePicture, match=r"photo\.jpg: No such file"):
        read_pictures([tmp_path / "photo.jpg"])


def test_read_pictures_names_a_file_that_cannot_be_read(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)

    with pytest.raises(UnreadablePicture, match=r"c\.jfif: Permission denied"):
        read_pictures([folder])


def test_read_pictures_up_to_the_limit_are_read_without_a_word(folder):
    words: list[str] = []

    pictures = read_pictures([folder], max_total_bytes=40, warn=words.append)

    assert (len(pictures), words) == (4, [])


def test_read_pictures_beyond_the_limit_are_chosen_and_told(folder):
    words: list[str] = []

    pictures = read_pictures([folder], max_total_bytes=29, warn=words.append)

    assert len(pictures) == 2
    assert pictures == read_pictures([folder], max_total_bytes=29, warn=words.append)
    assert "2 of 4 are sent, chosen at random." in words[0]


def test_read_pictures_warns_on_stderr(folder, capsys):
    read_pictures([folder], max_total_bytes=29)

    assert "2 of 4 are sent" in capsys.readouterr().err


def test_read_pictures_that_are_all_larger_than_the_limit_are_refused(folder):
    with pytest.raises(NoPictures, match="every file is larger"):
        read_pictures([folder], max_total_bytes=9)


def test_read_pictures_leaves_out_what_is_no_full_file_below_a_folder(tmp_path):
    (tmp_path / "good.png").write_bytes(b"a picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "dead.png").symlink_to("nowhere")
    (tmp_path / "circle.png").symlink_to("circle.png")
    os.mkfifo(tmp_path / "pipe.png")

    assert [picture.name for picture in read_pictures([tmp_path])] == ["good.png"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.touch()], ids=["pipe", "empty"])
def test_read_pictures_refuses_what_is_no_full_file_if_it_is_named(tmp_path, make):
    make(tmp_path / "odd.png")

    with pytest.raises(UnreadablePicture, match=r"odd\.png: empty, or no file"):
        read_pictures([tmp_path / "odd.png"])

import pytest

from contract.manifest import Label
from tests.training.helpers import tinynet
from training.data.pictures import (
    example_pictures,
    image_files,
    input_rows,
    scan_labelled,
    scan_plain,
)
from training.errors import PicturesMissing


def test_scan_labelled_reads_class_folders(colours_dir):
    pictures = list(scan_labelled(colours_dir, tinynet.labels()))

    assert [picture.index for picture in pictures] == [2] * 4 + [1] * 4 + [0] * 4
    assert pictures[0].name == "blue0.png"


def test_scan_labelled_reads_imagenet_file_names(tmp_path):
    labels = (Label(index=0, name="tench", synset="n01440764"),)
    (tmp_path / "n01440764_tench.JPEG").write_bytes(tinynet.picture("red", file_format="JPEG"))
    (tmp_path / "n01440764_saved.JFIF").write_bytes(tinynet.picture("red", file_format="JPEG"))
    (tmp_path / "n99999999_other.JPEG").write_bytes(tinynet.picture("red", file_format="JPEG"))

    folder = scan_labelled(tmp_path, labels)

    assert [(picture.name, picture.index) for picture in folder] == [
        ("n01440764_saved.JFIF", 0),
        ("n01440764_tench.JPEG", 0),
    ]
    assert folder.unlabelled == 1


def test_scan_labelled_counts_unreadable_files_and_continues(tmp_path):
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "good.png").write_bytes(tinynet.picture("red"))
    (tmp_path / "red" / "cut.png").write_bytes(tinynet.picture("red")[:300])
    (tmp_path / "red" / "text.jpg").write_text("no picture")
    (tmp_path / "red" / "notes.txt").write_text("ignored")

    folder = scan_labelled(tmp_path, tinynet.labels())

    assert [picture.name for picture in folder] == ["good.png"]
    assert folder.unreadable == 2
    assert str(folder) == "1 pictures, 2 unreadable and 0 of no known class left out"


def test_scan_labelled_is_the_same_on_every_pass(tmp_path):
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "cut.png").write_bytes(tinynet.picture("red")[:300])
    (tmp_path / "red" / "good.png").write_bytes(tinynet.picture("red"))
    folder = scan_labelled(tmp_path, tinynet.labels())

    assert list(folder) == list(folder)
    assert folder.unreadable == 1


def test_scan_follows_no_links_out_of_the_folder(tmp_path):
    outside = tmp_path / "outside"
    inside = tmp_path / "inside" / "red"
    outside.mkdir()
    inside.mkdir(parents=True)
    (outside / "secret.png").write_bytes(tinynet.picture("red"))
    (inside / "own.png").write_bytes(tinynet.picture("red"))
    (inside / "linked.png").symlink_to(outside / "secret.png")
    (inside / "folder").symlink_to(outside)

    folder = scan_labelled(tmp_path / "inside", tinynet.labels())

    assert [picture.name for picture in folder] == ["own.png"]


@pytest.mark.parametrize("scan", [scan_plain, lambda root: scan_labelled(root, tinynet.labels())])
def test_scan_without_pictures_is_refused(tmp_path, scan):
    with pytest.raises(PicturesMissing, match="no picture"):
        scan(tmp_path)


def test_scan_of_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(PicturesMissing, match="none: no such folder"):
        scan_plain(tmp_path / "none")


def test_input_rows_have_the_shape_and_type_of_the_graph_input(tiny_graph, colour_pictures):
    rows = input_rows(colour_pictures, tinynet.draft(tiny_graph))

    assert len(rows) == len(colour_pictures)
    assert rows[0].shape == (tinynet.SIDE_PX, tinynet.SIDE_PX, 3)
    assert rows[0].dtype == "uint8"


def test_example_pictures_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    names = [path.name for path in image_files(example_pictures())]

    assert names == ["cat.jpg", "coffee.jpg", "helmet.jpg", "photographer.png", "rocket.jpg"]

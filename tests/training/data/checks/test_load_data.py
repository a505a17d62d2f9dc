import pytest

from tests.pictures import encode, jpeg, photo, png
from tests.training.helpers.picture_sets import (
    by_code,
    copy,
    load,
    names_by_split,
    write_classes,
)
from training.config.config import Data
from training.data.checks.check import load_data
from training.data.checks.findings import LEAK_CODES
from training.errors import DataRefused


def test_load_data_of_a_folder_without_problems_takes_all_pictures(root, tmp_path):
    data, findings = load(root, tmp_path)

    assert data.name == "data"
    assert [label.name for label in data.labels] == ["a", "b"]
    assert [len(data.split(split)) for split in ("train", "validation", "test")] == [20, 20, 20]
    assert {sample.index for sample in data.test} == {0, 1}
    assert not findings.stops
    assert not findings.warnings
    assert not LEAK_CODES & {one.code for one in findings.items}


def test_load_data_of_class_folders_splits_them_the_same_way_every_time(tmp_path):
    root = write_classes(tmp_path / "data", n=20)

    first, findings = load(root, tmp_path)
    second, _ = load(root, tmp_path)
    other, _ = load(root, tmp_path, split_seed=1)

    assert first == second
    assert names_by_split(first) != names_by_split(other)
    assert [len(first.split(split)) for split in ("train", "validation", "test")] == [28, 6, 6]
    assert "6 for validation and 6 for test cut" in by_code(findings)["cut"].message


def test_load_data_cuts_only_the_split_that_is_missing(tmp_path):
    root = write_classes(tmp_path / "data", n=20, split="train")
    write_classes(root, n=5, split="test")

    data, findings = load(root, tmp_path)

    assert [len(data.split(split)) for split in ("train", "validation", "test")] == [34, 6, 10]
    assert all(name.startswith("test/") for name in names_by_split(data)["test"])
    assert "6 for validation cut" in by_code(findings)["cut"].message


def test_load_data_of_a_list_reads_its_splits(tmp_path):
    root = write_classes(tmp_path, n=10)
    rows = [f"{label}/{label}{i}.jpg,{label}" for label in "ab" for i in range(10)]
    splits = ["train"] * 8 + ["val", "test"]
    lines = [f"{row},{splits[i % 10]}" for i, row in enumerate(rows)]
    (root / "list.csv").write_text("\n".join(["path,label,split", *lines]))

    data, _ = load(root / "list.csv", tmp_path)

    assert names_by_split(data)["validation"] == {"a/a8.jpg", "b/b8.jpg"}
    assert names_by_split(data)["test"] == {"a/a9.jpg", "b/b9.jpg"}


UNREADABLE = {
    "empty.jpg": b"",
    "text.jpg": b"this is no picture",
    "cut.jpg": jpeg(photo((64, 64)))[:500],
    "cut.png": png(photo((64, 64)))[:-200],
    "random.png": bytes(range(256)) * 8,
    "tiff.jpg": encode(photo(), "TIFF"),
}


def test_load_data_leaves_unreadable_files_out_and_names_them(root, tmp_path):
    for i, (name, content) in enumerate(UNREADABLE.items()):
        (root / ("train", "validation", "test")[i % 3] / "a" / name).write_bytes(content)
    (root / "train" / "a" / "is-a-jpeg.png").write_bytes(jpeg(photo((64, 64), seed=77)))

    data, findings = load(root, tmp_path)

    unreadable = by_code(findings)["unreadable"]
    assert {item[0].rsplit("/", 1)[1] for item in unreadable.items} == UNREADABLE.keys()
    assert all(reason for _, reason in unreadable.items)
    assert len(data.train) == 21
    assert "train/a/is-a-jpeg.png" in names_by_split(data)["train"]
    for split in ("train", "validation", "test"):
        assert all(sample.read() for sample in data.split(split))


@pytest.mark.parametrize("change", [None, "recompressed", "mirrored", "cropped"])
@pytest.mark.parametrize(
    ("first", "second", "dropped"),
    [
        ("train", "test", "train"),
        ("train", "validation", "train"),
        ("validation", "test", "validation"),
    ],
)
def test_load_data_drops_a_leak_from_the_earlier_split(
    root, tmp_path, change, first, second, dropped
):
    kept = {"train": "test", "validation": "test"}[dropped] if second == "test" else second
    copy(root, f"{first}/a/a3.jpg", f"{second}/a/copy.jpg", change)

    data, findings = load(root, tmp_path)

    assert f"{dropped}/a/a3.jpg" not in names_by_split(data)[dropped]
    assert f"{kept}/a/copy.jpg" in names_by_split(data)[kept]
    code = "near_across" if change else "exact_across"
    assert [set(item) for item in by_code(findings)[code].items] == [
        {f"{first}/a/a3.jpg", f"{second}/a/copy.jpg"}
    ]
    assert LEAK_CODES & {one.code for one in findings.items}
    assert by_code(findings)["left_out"].items == ((f"{dropped}/a/a3.jpg",),)


def test_load_data_keeps_the_test_split_complete_if_all_splits_share_a_picture(root, tmp_path):
    for split in ("validation", "test"):
        copy(root, "train/a/a1.jpg", f"{split}/a/copy.jpg")

    data, _ = load(root, tmp_path)

    assert [len(data.split(split)) for split in ("train", "validation", "test")] == [19, 20, 21]


def test_load_data_with_leaks_keep_keeps_and_reports_them(root, tmp_path):
    copy(root, "train/a/a3.jpg", "test/a/copy.jpg")

    data, findings = load(root, tmp_path, leaks="keep")

    assert len(data.train) == 20
    assert LEAK_CODES & {one.code for one in findings.items}
    assert "accuracy will be too high" in by_code(findings)["exact_across"].advice


def test_load_data_with_leaks_stop_names_them(root, tmp_path):
    copy(root, "train/a/a3.jpg", "test/a/copy.jpg")

    with pytest.raises(
        DataRefused, match=r"1 picture with exact copies in another split: test/a/copy\.jpg = "
    ):
        load(root, tmp_path, leaks="stop")


def test_load_data_keeps_copies_together_when_it_splits(tmp_path):
    root = write_classes(tmp_path / "data", n=10)
    for i in range(10):
        copy(root, f"a/a{i}.jpg", f"a/copy{i}.jpg", "brighter")

    data, findings = load(root, tmp_path)

    for names in names_by_split(data).values():
        for i in range(10):
            assert (f"a/a{i}.jpg" in names) == (f"a/copy{i}.jpg" in names)
    assert len(by_code(findings)["near_within"].items) == 10
    assert not LEAK_CODES & {one.code for one in findings.items}


def test_load_data_drops_a_training_picture_with_two_labels(root, tmp_path):
    copy(root, "train/a/a1.jpg", "train/b/same.jpg")

    data, findings = load(root, tmp_path)
    kept, _ = load(root, tmp_path, leaks="keep")

    assert not {"train/a/a1.jpg", "train/b/same.jpg"} & names_by_split(data)["train"]
    assert by_code(findings)["two_labels"].items == (
        ("train/a/a1.jpg (a)", "train/b/same.jpg (b)"),
    )
    assert (
        "2 training pictures with equal pixels are left out"
        in by_code(findings)["two_labels"].advice
    )
    assert {"train/a/a1.jpg", "train/b/same.jpg"} <= names_by_split(kept)["train"]


def test_load_data_keeps_a_near_copy_with_another_label_and_reports_it(root, tmp_path):
    copy(root, "train/a/a1.jpg", "train/b/same.jpg", "brighter")

    data, findings = load(root, tmp_path)

    assert len(data.train) == 21
    assert by_code(findings)["two_labels"].advice == "correct the labels"


def test_load_data_logs_progress(root, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("training.data.checks.check._LOG_EVERY", 25)

    load_data(str(root), Data(), cache_dir=tmp_path)

    assert caplog.messages == [
        "data: 60 pictures of 2 classes",
        "decoded 25 of 60 pictures",
        "decoded 50 of 60 pictures",
        "compared 60 of 60 pictures",
    ]

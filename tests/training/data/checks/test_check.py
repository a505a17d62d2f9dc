import pytest

from tests.pictures import jpeg, photo, picture, png
from tests.training.helpers.picture_sets import (
    by_code,
    check,
    copy,
    load,
    write,
    write_classes,
)
from training.data.checks.findings import render
from training.data.checks.rules import SKIP_ADVICE
from training.errors import DataRefused


def test_check_reports_an_empty_class_among_other_findings_and_load_data_stops(root, tmp_path):
    for split in ("train", "validation", "test"):
        (root / split / "gloves").mkdir()
    (root / "train" / "a" / "text.jpg").write_text("x")

    findings = check(root, tmp_path)

    assert by_code(findings)["class_without_training_pictures"].items == (
        ("gloves", "no pictures at all"),
    )
    assert "unreadable" in by_code(findings)
    assert findings.items[0].severity == "stop"
    with pytest.raises(DataRefused, match=r"no training pictures in 1 class: gloves: no pic"):
        load(root, tmp_path)


def test_check_says_why_a_class_has_no_training_pictures(root, tmp_path):
    write(root, "test/only-here/1.jpg", seed=50)
    (root / "train" / "broken").mkdir()
    for i in range(3):
        (root / "train" / "broken" / f"{i}.jpg").write_bytes(b"x")
    copy(root, "test/a/a1.jpg", "train/leaked/1.jpg")

    findings = check(root, tmp_path)

    assert by_code(findings)["class_without_training_pictures"].items == (
        ("broken", "3 unreadable"),
        ("leaked", "1 repeated in a later split"),
        ("only-here", "pictures in test only"),
    )


def test_check_of_one_class_stops(tmp_path):
    findings = check(write_classes(tmp_path / "data", "a"), tmp_path)

    assert [one.code for one in findings.stops] == ["too_few_classes"]
    assert "balance" not in by_code(findings)
    assert "data: 10 pictures of 1 class\n" in render(findings)


@pytest.mark.parametrize(
    ("files", "advice"),
    [
        (
            ["photos/ant/1.jpg", "photos/bee/2.jpg"],
            "if the classes are the 2 folders in data/photos (ant, bee), give data/photos",
        ),
        (
            ["a/b/1/1.jpg", "a/b/2/1.jpg", "a/b/3/1.jpg", "a/b/4/1.jpg"],
            "if the classes are the 4 folders in data/a/b (1, 2, 3, ...), give data/a/b",
        ),
        (["ant/old/1.jpg", "ant/2.jpg"], "add pictures of another class"),
        (["ant/1.jpg", "ant/2.jpg"], "add pictures of another class"),
    ],
    ids=["one-deeper", "two-deeper", "a-folder-in-a-class", "flat"],
)
def test_check_of_one_class_names_the_folder_that_may_have_the_classes(tmp_path, files, advice):
    findings = check(write(tmp_path / "data", *files), tmp_path)

    assert by_code(findings)["too_few_classes"].advice.endswith(advice)


def test_check_of_unreadable_pictures_only_has_the_cause_as_its_one_stop(tmp_path):
    for name in ("a/1.jpg", "b/2.jpg"):
        write(tmp_path / "data", name)
        (tmp_path / "data" / name).write_bytes(b"text")

    findings = check(tmp_path / "data", tmp_path)

    (stop,) = findings.items
    assert (stop.severity, stop.message) == ("stop", "none of the 2 pictures can be read")
    assert [name for name, _ in stop.items] == ["a/1.jpg", "b/2.jpg"]
    assert "not an accepted image format" in stop.items[0][1]
    with pytest.raises(
        DataRefused, match=r"none of the 2 pictures can be read: a/1.jpg: the bytes"
    ):
        load(tmp_path / "data", tmp_path)


def test_check_of_a_list_with_wrong_paths_stops_with_the_paths(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\nimages/1.jpg,a\nimages/2.jpg,b\n")

    findings = check(tmp_path / "list.csv", tmp_path)

    (stop,) = findings.items
    assert stop.items == (
        ("images/1.jpg (line 2)", "no such file"),
        ("images/2.jpg (line 3)", "no such file"),
    )
    assert stop.advice.endswith("paths start at the list's folder")
    with pytest.raises(DataRefused, match=r"no pictures found: images/1.jpg \(line 2\): no such"):
        load(tmp_path / "list.csv", tmp_path)


def test_check_of_too_few_pictures_advises_nothing_about_splits_that_are_not_there(tmp_path):
    findings = check(write_classes(tmp_path / "data", "ab", n=1), tmp_path)

    advice = {one.code: one.advice for one in findings.stops}
    assert advice == dict.fromkeys(
        ("no_validation_pictures", "no_test_pictures"),
        "too few training pictures to cut them from; add pictures",
    )


def test_check_of_equal_classes_says_so(tmp_path):
    equal = check(write_classes(tmp_path / "data", n=12), tmp_path)
    write(tmp_path / "data", *(f"b/more{i}.jpg" for i in range(8)), seed=9)
    unequal = check(tmp_path / "data", tmp_path)

    assert by_code(equal)["balance"].message == "8 training pictures of each class"
    assert by_code(unequal)["balance"].message == "14 training pictures of b, 8 of a"


def test_check_of_empty_class_folders_stops_at_no_pictures(tmp_path):
    (tmp_path / "data" / "cat").mkdir(parents=True)

    findings = check(tmp_path / "data", tmp_path)

    assert [one.code for one in findings.stops] == ["no_pictures"]
    assert "cannot be trained on" in render(findings)


def test_check_of_an_empty_validation_split_stops(root, tmp_path):
    for label in "ab":
        for path in (root / "validation" / label).iterdir():
            path.write_bytes(b"broken")

    findings = check(root, tmp_path)

    assert [one.code for one in findings.stops] == ["no_validation_pictures"]


def test_check_warns_of_small_unbalanced_and_missing_classes(root, tmp_path):
    write_classes(root, "c", n=3, split="train")
    write(root, *(f"train/b/more{i}.jpg" for i in range(25)), seed=70)

    findings = by_code(check(root, tmp_path))

    assert findings["few_pictures"].items == (("c", "3"),)
    assert "35 training pictures of b, 3 of c" in findings["imbalance"].message
    assert findings["class_missing_in_validation"].items == (("c",),)
    assert findings["class_missing_in_test"].items == (("c",),)


def test_check_warns_of_unusual_modes_and_sizes(root, tmp_path):
    folder = root / "train" / "a"
    (folder / "cmyk.jpg").write_bytes(jpeg(photo((64, 64), 90).convert("CMYK")))
    (folder / "palette.png").write_bytes(png(photo((64, 64), 91).convert("P")))
    (folder / "clear.png").write_bytes(png(photo((64, 64), 92).convert("RGBA")))
    (folder / "tiny.png").write_bytes(png(photo((20, 64), 93)))
    (folder / "long.png").write_bytes(png(photo((400, 64), 94)))

    _, findings = load(root, tmp_path, input_size_px=64)

    odd = {one.message.split()[1]: one.items for one in findings.items if one.code == "odd_mode"}
    assert odd == {
        "CMYK": (("train/a/cmyk.jpg", "CMYK"),),
        "palette": (("train/a/palette.png", "P"),),
        "transparent": (("train/a/clear.png", "RGBA"),),
    }
    assert by_code(findings)["small"].items == (("train/a/tiny.png", "20 x 64"),)
    assert by_code(findings)["long"].items == (("train/a/long.png", "400 x 64"),)
    assert by_code(findings)["below_input"].message.startswith("61 pictures with a side shorter")


def test_check_of_tiny_transparent_pictures_only_notes_what_all_share(tmp_path):
    for label in "ab":
        for i in range(4):
            path = tmp_path / "data" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(photo((8, 8), ord(label) + 10 * i).convert("RGBA")))

    findings = check(tmp_path / "data", tmp_path)

    assert "small" not in by_code(findings)
    assert by_code(findings)["odd_mode"].severity == "note"
    assert not {"near_within", "near_across"} & by_code(findings).keys()


def test_check_of_tiny_pictures_still_finds_exact_copies(tmp_path):
    root = tmp_path / "data"
    for place in ("train/a/1", "train/b/2", "test/a/3", "test/b/4"):
        path = root / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(photo((8, 8), int(place[-1]))))
    copy(root, "train/a/1.png", "test/a/copy.png")

    findings = check(root, tmp_path)

    assert by_code(findings)["exact_across"].items == (("test/a/copy.png", "train/a/1.png"),)


def test_check_warns_if_most_training_pictures_repeat_test_pictures(root, tmp_path):
    for i in range(6):
        copy(root, f"train/a/a{i}.jpg", f"test/a/copy{i}.jpg")

    findings = by_code(check(root, tmp_path))

    assert findings["many_left_out"].message.startswith("6 of 20 pictures")
    assert "fixed camera" in findings["many_left_out"].advice


def test_check_warns_of_labels_spelled_in_two_ways(root, tmp_path):
    write(root, "train/T_Shirt/1.jpg", "train/t-shirt/2.jpg", "train/b /3.jpg", seed=60)

    findings = by_code(check(root, tmp_path))

    assert findings["labels_alike"].items == (("t-shirt", "T_Shirt"),)
    assert findings["labels_merged"].items == (("'b'",), ("'b '",))


def test_check_reports_what_was_skipped(root, tmp_path):
    (root / "train" / "a" / "notes.txt").write_text("x")
    write(root, "train/loose.jpg")

    findings = check(root, tmp_path).items

    skipped = {one.message: one.severity for one in findings if one.code == "skipped"}

    assert skipped == {
        "1 skipped: not a picture": "note",
        "1 skipped: a picture outside the class folders": "warning",
    }


def test_check_says_what_to_do_about_everything_it_skips(root, tmp_path):
    write(tmp_path, "elsewhere/1.jpg")
    write(root, "train/loose.jpg", "extra/a/1.jpg", seed=50)
    (root / "train" / "a" / "notes.txt").write_text("x")
    (root / "train" / "a" / "out.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    (root / "train" / "a" / "gone.jpg").symlink_to(root / "none.jpg")
    (root / "train" / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    lines = ["path,label", "test/a/a1.jpg,a", "test/a/a1.jpg,a", "none.jpg,a", ",a"]
    (root / "list.csv").write_text("\n".join(lines))

    found = [*check(root, tmp_path).items, *check(root / "list.csv", tmp_path).items]

    skipped = {one.message: one.advice for one in found if one.code == "skipped"}
    reasons = {message.partition(": ")[2] for message in skipped}
    # Permissions do not stop root, so a folder that cannot be read is not made here.
    assert {*reasons, "a folder that cannot be read"} == SKIP_ADVICE.keys()
    assert all(skipped.values())
    assert skipped["1 skipped: no such file"].startswith("correct the path")


def test_check_finds_no_duplicates_among_one_colour_pictures(tmp_path):
    for i, label in enumerate("aabbbb"):
        path = tmp_path / "data" / label / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture((40 * i, 20, 30), (64, 64))))

    findings = check(tmp_path / "data", tmp_path)

    assert not {"near_within", "exact_within", "two_labels"} & by_code(findings).keys()

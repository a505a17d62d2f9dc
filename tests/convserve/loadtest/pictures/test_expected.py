from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from convserve.commands.classify import classify
from convserve.loadtest.pictures import (
    BadExpectations,
    Picture,
    match_expected,
    read_expected,
    read_pictures,
)
from tests import tinymodel

CAT_AND_DOG = {"a/1.jpg": "cat", "2.jpg": "dog, wet"}
FORMS = {
    "object": json.dumps(CAT_AND_DOG),
    "object over lines": "\n" + json.dumps(CAT_AND_DOG, indent=2),
    "csv": 'file,label\na/1.jpg,cat\n2.jpg,"dog, wet"\n',
    "csv with other columns": 'label,note,file\r\ncat,x,a/1.jpg\r\n"dog, wet",,2.jpg\r\n',
    "csv with a byte order mark": '\ufefffile,label\na/1.jpg,cat\n2.jpg,"dog, wet"',
    "csv of convserve classify": (
        "file,rank,label,index,synset,probability\n"
        "a/1.jpg,1,cat,3,,0.9\na/1.jpg,2,fox,4,,0.1\n"
        '2.jpg,1,"dog, wet",5,,0.6\n2.jpg,2,cat,3,,0.4\n'
    ),
    "json of convserve classify": (
        '{"file": "a/1.jpg", "predictions": [{"label": "cat"}, {"label": "fox"}]}\n'
        '{"file": "2.jpg", "predictions": [{"label": "dog, wet"}]}\n'
    ),
}
BAD = {
    "empty": ("", "no columns file and label"),
    "list": ("[]", "no columns file and label"),
    "empty object": ("{}", "names no picture"),
    "header only": ("file,label\n", "names no picture"),
    "other columns": ("name,class\na.jpg,cat\n", "no columns file and label"),
    "row too short": ("file,label\na.jpg\n", "line 2 has no file or no label"),
    "label missing": ("file,label\na.jpg,\n", "line 2 has no file or no label"),
    "not JSON": ('{"a.jpg": "cat"\n', "line 1 is not JSON"),
    "second line not JSON": (
        '{"file": "a", "predictions": [{"label": "b"}]}\n{',
        "line 2 is not JSON",
    ),
    "deep JSON": ('{"a":' * 100_000, "line 1 is not JSON"),
    "classes are lists": ('{"a.jpg": ["cat"]}', "no file and class"),
    "no predictions": ('{"file": "a.jpg", "predictions": []}', "no file and label"),
    "two classes": ("file,label\na.jpg,cat\na.jpg,dog\n", "two classes for a.jpg: cat and dog"),
    "huge field": (f"file,label\n{'x' * 200_000},cat\n", "field larger than field limit"),
}


def named(*names: str) -> list[Picture]:
    return [Picture(name, b"") for name in names]


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_read_expected_understands_the_form(text, tmp_path):
    file = tmp_path / "expected"
    file.write_text(text, encoding="utf-8")

    assert read_expected(file) == CAT_AND_DOG


def test_read_expected_turns_indices_into_text(tmp_path):
    file = tmp_path / "expected.json"
    file.write_text('{"a.jpg": 281}')

    assert read_expected(file) == {"a.jpg": "281"}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_read_expected_of_another_form_is_refused(text, message, tmp_path):
    file = tmp_path / "expected"
    file.write_text(text)

    with pytest.raises(BadExpectations, match=message) as caught:
        read_expected(file)

    assert str(caught.value).startswith(f"{file}: ")


def test_read_expected_of_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadExpectations, match=r"expected\.csv: No such file"):
        read_expected(tmp_path / "expected.csv")


def test_read_expected_of_a_picture_is_refused(tmp_path):
    file = tmp_path / "cat.png"
    file.write_bytes(tinymodel.picture("red"))

    with pytest.raises(BadExpectations, match="not a text file"):
        read_expected(file)


@pytest.mark.parametrize("option", ["--csv", "--json"])
def test_read_expected_of_what_classify_prints_matches_the_pictures(option, models_dir, tmp_path):
    folder = tmp_path / "photos"
    for colour in tinymodel.LABELS:
        (folder / colour).mkdir(parents=True)
        (folder / colour / "1.png").write_bytes(tinymodel.picture(colour))
    arguments = [str(folder), option, "--models-dir", str(models_dir)]
    printed = CliRunner().invoke(classify, arguments, catch_exceptions=False)
    file = tmp_path / "expected"
    file.write_text(printed.stdout)

    expected = match_expected(read_expected(file), read_pictures([folder]))

    assert expected == {f"{colour}/1.png": colour for colour in tinymodel.LABELS}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("a/1.jpg", "a/1.jpg"),
        ("photos/a/1.jpg", "a/1.jpg"),
        ("/data/photos/a/1.jpg", "a/1.jpg"),
        ("a/1.jpg", "/data/photos/a/1.jpg"),
        ("1.jpg", "a/1.jpg"),
        ("a/1.jpg", "1.jpg"),
        ("elsewhere/1.jpg", "a/1.jpg"),
        ("./a/1.jpg", "a/1.jpg"),
    ],
    ids=[
        "equal",
        "longer path",
        "absolute path",
        "path given twice",
        "file name",
        "file given alone",
        "other folder",
        "dot",
    ],
)
def test_match_expected_finds_the_picture(line, name):
    expected = {line: "cat", "other/2.jpg": "dog"}

    assert match_expected(expected, named(name, "3.jpg")) == {name: "cat"}


def test_match_expected_prefers_the_equal_path():
    expected = {"1.jpg": "cat", "a/1.jpg": "dog"}

    assert match_expected(expected, named("1.jpg", "a/1.jpg")) == {"1.jpg": "cat", "a/1.jpg": "dog"}


def test_match_expected_leaves_out_a_file_name_that_is_not_unique():
    expected = {"x/1.jpg": "cat", "2.jpg": "dog"}

    assert match_expected(expected, named("a/1.jpg", "b/1.jpg", "2.jpg")) == {"2.jpg": "dog"}


def test_match_expected_of_two_classes_for_a_picture_is_refused():
    expected = {"train/1.jpg": "cat", "test/1.jpg": "dog"}

    with pytest.raises(BadExpectations, match=r"1\.jpg could be several of the expected pictures"):
        match_expected(expected, named("1.jpg"))


def test_match_expected_of_no_picture_is_refused():
    with pytest.raises(BadExpectations, match=r"such as 1\.jpg, is among the 1 to send, such as 2"):
        match_expected({"1.jpg": "cat"}, named("2.jpg"))

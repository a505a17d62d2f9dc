import json
import os

import pytest

from tests.training.helpers.picture_sets import (
    check,
    write_classes,
)
from training.data.checks.findings import Finding, Findings, printable, render


def test_findings_json_has_the_full_lists(root, tmp_path):
    for i in range(7):
        (root / "train" / "a" / f"bad{i}.jpg").write_bytes(b"x")
    findings = check(root, tmp_path)

    content = json.loads(json.dumps(findings.to_json()))

    entry = next(one for one in content["findings"] if one["code"] == "unreadable")
    assert entry["count"] == len(entry["items"]) == 7
    assert content["counts"]["train"] == {"a": 10, "b": 10}
    assert entry["severity"] == "warning"


def test_render_shows_five_examples_and_what_to_do(root, tmp_path):
    for i in range(7):
        (root / "train" / "a" / f"bad{i}.jpg").write_bytes(b"x")

    text = render(check(root, tmp_path))

    assert "warning  7 pictures cannot be read\n" in text
    assert text.count("bad") == 5
    assert "and 2 more\n         -> left out; delete or replace these files" in text
    assert "  all            20          20          20" in text
    assert text.endswith("data can be trained on; stops: 0, warnings: 1")


def test_render_of_many_classes_shows_the_smallest():
    labels = tuple(f"class {i}" for i in range(100))
    counts = {"train": tuple(range(100, 200)), "test": (1,) * 100}

    text = render(Findings("big", labels, counts))

    assert "class 0 " in text
    assert "class 50" not in text
    assert "and 80 larger classes" in text
    assert f"{sum(range(100, 200))}" in text


def test_render_shortens_large_groups():
    finding = Finding("warning", "exact_within", "x", "", (tuple("abcdefg"),), joiner=" = ")

    assert "a = b = c = d = 3 more" in render(Findings("x", items=(finding,)))


def test_printable_escapes_control_characters():
    assert printable("a\x1b[31m\nb\udcff\u202ec é") == r"a\x1b[31m\nb\udcff\u202ec é"


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
def test_findings_with_file_names_that_are_not_unicode_can_be_shown_and_saved(tmp_path):
    root = write_classes(tmp_path / "data")
    name = os.fsencode(root / "a") + b"/\xff\x1b.jpg"
    with open(name, "wb") as file:  # noqa: PTH123
        file.write(b"no picture")

    findings = check(root, tmp_path)

    assert r"a/\udcff\x1b.jpg" in render(findings)
    assert json.dumps(findings.to_json(), ensure_ascii=False).encode()

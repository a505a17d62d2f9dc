import pytest

from contract.images import decode
from tests.training.helpers.picture_sets import label_names, sample_names, write
from training.data.sources.find import find
from training.errors import DataRefused

DIALECTS = {
    "comma": "path,label,split\n{0},cat,train\n{1},dog,Val\n",
    "semicolon": "path;label;split\n{0};cat;train\n{1};dog;valid\n",
    "tab-and-aliases": "Filename\tCLASS\tset\n{0}\tcat\tTRAIN\n{1}\tdog\tdev\n",
    "bom-and-windows-lines": "\ufeffimage,category,split\r\n{0},cat,train\r\n{1},dog,val\r\n",
    "hugging-face": "file_name,class_name,split\n{0},cat,train\n{1},dog,validation\n",
    "quoted-and-reordered": 'split,label,more,path\ntrain,"cat",1,"{0}"\nval,dog,2,{1}\n',
}


@pytest.mark.parametrize("text", DIALECTS.values(), ids=DIALECTS.keys())
def test_find_reads_lists_in_many_csv_dialects(tmp_path, text):
    write(tmp_path, "in, quotes/1.jpg" if '"' in text else "photos/1.jpg", "photos/2.jpg")
    first = "in, quotes/1.jpg" if '"' in text else "photos/1.jpg"
    (tmp_path / "list.csv").write_text(text.format(first, "photos/2.jpg"), newline="")

    found = find(str(tmp_path / "list.csv"), cache_dir=tmp_path)

    assert found.name == "list"
    assert sample_names(found) == [first, "photos/2.jpg"]
    assert label_names(found) == ["cat", "dog"]
    assert found.splits == ("train", "validation")


def test_find_reads_a_list_that_ends_in_tsv(tmp_path):
    write(tmp_path, "1.jpg")
    (tmp_path / "list.tsv").write_text("path\tlabel\n1.jpg\tcat\n")

    assert label_names(find(str(tmp_path / "list.tsv"), cache_dir=tmp_path)) == ["cat"]


def test_find_reads_a_list_without_splits(tmp_path):
    write(tmp_path, "1.jpg")
    (tmp_path / "list.csv").write_text("file,label\n1.jpg,cat\n\n")

    assert find(str(tmp_path / "list.csv"), cache_dir=tmp_path).splits == (None,)


def test_find_reads_windows_paths(tmp_path):
    write(tmp_path, "photos/1.jpg")
    (tmp_path / "list.csv").write_text("path,label\nphotos\\1.jpg,cat\n")

    found = find(str(tmp_path / "list.csv"), cache_dir=tmp_path)

    assert decode(found.samples[0].read()).size


def test_find_reports_the_lines_it_cannot_use(tmp_path):
    write(tmp_path, "1.jpg")
    lines = [
        "path,label",
        "1.jpg,cat",
        "gone.jpg,dog",
        ",cat",
        "1.jpg",
        "1.jpg,cat",
        "a\0b,cat",
        f"{'x' * 5000},cat",
    ]
    (tmp_path / "list.csv").write_text("\n".join(lines))

    found = find(str(tmp_path / "list.csv"), cache_dir=tmp_path)

    assert sample_names(found) == ["1.jpg"]
    assert label_names(found) == ["cat", "dog"]
    assert found.skipped == {
        "a line without path or label": ("line 4", "line 5"),
        "listed twice": ("1.jpg (line 6)",),
        "no such file": ("gone.jpg (line 3)", "a\0b (line 7)", f"{'x' * 5000} (line 8)"),
    }


def test_find_keeps_a_file_listed_under_two_labels_apart(tmp_path):
    write(tmp_path, "1.jpg")
    (tmp_path / "list.csv").write_text("path,label\n1.jpg,cat\n1.jpg,dog\n")

    found = find(str(tmp_path / "list.csv"), cache_dir=tmp_path)

    assert sample_names(found) == ["1.jpg", "1.jpg (line 3)"]
    assert [sample.index for sample in found.samples] == [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must name the columns path .* and label"),
        (b"path,kind\n1.jpg,cat\n", "may name split; it is 'path,kind'"),
        (b"1.jpg,cat\n", "must name the columns"),
        (b"path,label,split\n1.jpg,cat,holdout\n", "line 2: unknown split 'holdout'"),
        ("path,label\nä.jpg,x\n".encode("latin-1"), "not UTF-8"),
        (b'path,label\n"' + b"x" * 200_000 + b'",cat\n', "field larger than field limit"),
    ],
    ids=["empty", "no-label", "no-header", "unknown-split", "encoding", "endless-field"],
)
def test_find_refuses_a_list_it_cannot_read(tmp_path, content, message):
    (tmp_path / "list.csv").write_bytes(content)

    with pytest.raises(DataRefused, match=message):
        find(str(tmp_path / "list.csv"), cache_dir=tmp_path)


def test_find_refuses_a_missing_list(tmp_path):
    with pytest.raises(DataRefused, match=r"none\.csv: No such file"):
        find(str(tmp_path / "none.csv"), cache_dir=tmp_path)

import pytest

from contract.manifest import Label
from training.data.labels.read import read_labels
from training.errors import LabelsInvalid


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("labels.txt", "cat\ndog\n", id="lines"),
        pytest.param("labels.txt", "\ufeffcat\r\ndog\r\n", id="lines-from-windows"),
        pytest.param("labels.json", '["cat", "dog"]', id="json-list"),
        pytest.param("labels.json", '{"1": "dog", "0": "cat"}', id="json-by-index"),
        pytest.param("labels.json", '[{"name": "cat"}, {"name": "dog"}]', id="json-objects"),
        pytest.param("labels.csv", "name\ncat\ndog\n", id="csv"),
        pytest.param("labels.txt", "1: dog\n0: cat\n", id="lines-with-colons"),
        pytest.param("labels.txt", "1 dog\n0 cat\n", id="lines-with-ids"),
        pytest.param("labels.txt", "1\tdog\n0\tcat\n", id="lines-with-tabs"),
        pytest.param("labels.txt", "1,dog\n0,cat\n", id="lines-with-commas"),
        pytest.param("labels.txt", "1 - dog\n0 - cat\n", id="lines-with-hyphens"),
        pytest.param("labels.txt", "dog 1\ncat 0\n", id="lines-with-ids-last"),
        pytest.param("labels.json", '{"dog": 1, "cat": 0}', id="json-by-name"),
        pytest.param("labels.json", '{"id2label": {"1": "dog", "0": "cat"}}', id="hugging-face"),
        pytest.param(
            "labels.json",
            '[{"id": 1, "name": "dog"}, {"id": 0, "name": "cat"}]',
            id="json-objects-with-ids",
        ),
        pytest.param("labels.csv", "id,name\n1,dog\n0,cat\n", id="csv-with-ids"),
        pytest.param("labels.csv", "Name,ID\ndog,1\ncat,0\n", id="csv-with-ids-last"),
        pytest.param("labels.csv", ",label\n1,dog\n0,cat\n", id="csv-of-pandas"),
        pytest.param("labels.csv", "label,name\n1,dog\n0,cat\n", id="csv-with-numbered-labels"),
        pytest.param("labels.csv", "1,dog\n0,cat\n", id="csv-without-header"),
        pytest.param("labels.csv", "dog,1\ncat,0\n", id="csv-without-header-ids-last"),
        pytest.param("labels.csv", "index;class\n1;dog\n0;cat\n", id="csv-with-semicolons"),
        pytest.param("labels.tsv", "id\tname\n1\tdog\n0\tcat\n", id="tsv"),
        pytest.param("labels.csv", "name,pictures\ncat,500\ndog,480\n", id="csv-with-counts"),
        pytest.param("labels.txt", "cat\ndog\n\n\n", id="lines-with-empty-ones-behind"),
        pytest.param("labels.txt", "1. dog\n0. cat\n", id="lines-with-dots"),
        pytest.param("labels.txt", "(1) dog\n(0) cat\n", id="lines-with-brackets"),
        pytest.param("labels.txt", "['cat', 'dog']", id="list-of-python"),
        pytest.param("labels.txt", "{1: 'dog',\n 0: 'cat'}\n", id="dictionary-of-python"),
        pytest.param("labels.json", '{"class_to_idx": {"dog": 1, "cat": 0}}', id="json-one-member"),
        pytest.param("labels.json", '{"classes": ["cat", "dog"]}', id="json-list-in-an-object"),
        pytest.param("labels.json", '{"dog": "1", "cat": "0"}', id="json-ids-as-text"),
        pytest.param(
            "labels.json",
            '[{"index": 1, "label": "dog"}, {"index": 0, "label": "cat"}]',
            id="json-records-of-pandas",
        ),
        pytest.param(
            "config.json",
            '{"architecture": "resnet18", "num_classes": 2, "label_names": ["cat", "dog"]}',
            id="timm",
        ),
        pytest.param("labels.csv", "ClassId,SignName\n1,dog\n0,cat\n", id="csv-one-other-column"),
        pytest.param("labels.csv", "Class ID,ClassName\n1,dog\n0,cat\n", id="csv-other-spelling"),
        pytest.param("labels.csv", "Unnamed: 0,label\n1,dog\n0,cat\n", id="csv-of-pandas-twice"),
    ],
)
def test_read_labels_reads_every_format(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")

    labels = read_labels(tmp_path / name)

    assert labels == (Label(index=0, name="cat"), Label(index=1, name="dog"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("l.json", '[{"name": "cheetah", "synset": "n02130308"}]', id="json"),
        pytest.param("l.csv", "synset,name\nn02130308,cheetah\n", id="csv"),
        pytest.param("l.csv", "id,name\nn02130308,cheetah\n", id="csv-id"),
        pytest.param("l.csv", "0,n02130308,cheetah\n", id="csv-without-header"),
        pytest.param("l.txt", "n02130308 cheetah\n", id="lines"),
        pytest.param("l.txt", "0: n02130308 cheetah\n", id="lines-with-ids"),
        pytest.param("l.json", '{"0": ["n02130308", "cheetah"]}', id="keras"),
        pytest.param("l.csv", "synset,words\nn02130308,cheetah\n", id="csv-one-other-column"),
        pytest.param(
            "l.json",
            '{"label_names": ["n02130308"], "label_descriptions": {"n02130308": "cheetah"}}',
            id="timm",
        ),
    ],
)
def test_read_labels_reads_synsets(tmp_path, name, text):
    (tmp_path / name).write_text(text)

    labels = read_labels(tmp_path / name)

    assert labels == (Label(index=0, name="cheetah", synset="n02130308"),)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["class 0", "class 1"], id="number-last"),
        pytest.param(["1 euro", "2 euro"], id="number-first"),
        pytest.param(["7 spot ladybird", "22 spot ladybird"], id="not-a-numbering"),
        pytest.param(["001.ak47", "002.flag"], id="dots-without-a-space"),
        pytest.param(["0", "1", "2"], id="digits"),
        pytest.param(["boeing 747", "airbus 320"], id="aircraft"),
    ],
)
def test_read_labels_keeps_numbers_that_belong_to_the_names(tmp_path, names):
    (tmp_path / "l.txt").write_text("\n".join(names))

    assert [label.name for label in read_labels(tmp_path / "l.txt")] == names


def test_read_labels_reads_utf_16(tmp_path):
    (tmp_path / "l.txt").write_text("käse\nbrot\n", encoding="utf-16")

    assert [label.name for label in read_labels(tmp_path / "l.txt")] == ["käse", "brot"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        pytest.param("l.txt", "", "contains no labels", id="empty"),
        pytest.param("l.txt", "cat\n\ndog\n", "line 2 is empty", id="empty-line"),
        pytest.param("l.json", '["cat", ""]', "the class 1 has no name", id="empty-name"),
        pytest.param(
            "l.txt", "cat\ncat\n", "'cat' .* once, for the classes 0 and 1; give", id="twice"
        ),
        pytest.param("l.txt", "0 a\n1 b\n5 c\n", "numbers 0, 1, 5, .* .json list", id="lines-gap"),
        pytest.param(
            "l.txt", "n02119789 1 fox\nn02100735 2 dog\n", "are 1, 2; ", id="devkit-of-imagenet"
        ),
        pytest.param("l.json", "{", "l.json: Expecting", id="broken-json"),
        pytest.param("l.json", "[" * 100_000, "nested too deeply", id="json-deep"),
        pytest.param("l.json", '{"a":' * 900 + "1" + "}" * 900, "l.json", id="json-deep-members"),
        pytest.param("l.json", "3", "expected a list", id="json-number"),
        pytest.param("l.json", '{"0": "a", "2": "b"}', "without a gap", id="json-gap"),
        pytest.param("l.json", '{"0": "a", "0": "b"}', "more than once", id="json-id-twice"),
        pytest.param("l.json", '{"a": 1, "b": 2}', "are 1, 2; .* index 0", id="json-from-1"),
        pytest.param("l.json", '{"7": 0, "3": 1}', "both sides are numbers", id="json-numbers"),
        pytest.param("l.json", '{"a": "b"}', "from index to name", id="json-names"),
        pytest.param("l.json", '{"id2label": 3}', "from index to name", id="json-id2label"),
        pytest.param(
            "l.json",
            '{"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 1, "b": 0}}',
            "gives 'a' the id 0, label2id 1",
            id="json-inverse",
        ),
        pytest.param("l.json", '[{"id": 0, "name": "a"}, "b"]', "1 of 2 classes", id="json-mixed"),
        pytest.param("l.json", '[{"id": "0", "name": "a"}]', "each entry must be", id="json-id"),
        pytest.param("l.txt", "1: a\n2: b\n", "are 1, 2", id="lines-from-1"),
        pytest.param("l.txt", "1 a\n2 b\n", "are 1, 2", id="lines-from-1-with-spaces"),
        pytest.param("l.txt", "0: a\nb\n", "1 of 2 lines begin with an id", id="lines-mixed"),
        pytest.param("l.txt", "id,name\n0,a\n", "1 of 2 lines", id="lines-with-a-header"),
        pytest.param("l.csv", "id,name\n0,a\n0,b\n", "are 0, 0", id="csv-id-twice"),
        pytest.param("l.csv", "id,name\nx,a\n", "the id 'x' of 'a'", id="csv-id"),
        pytest.param("l.csv", "name,rank\na,1\nb,0\n", "'rank' numbers", id="csv-numbering"),
        pytest.param("l.csv", "0,a,b\n1,c,d\n", "add a header", id="csv-unclear"),
        pytest.param("l.csv", "name\na, b\n", "row 2 has 2 columns", id="csv-unquoted"),
        pytest.param("l.csv", "", "contains no labels", id="csv-empty"),
        pytest.param("l.json", '[["a"]]', "each entry must be", id="json-nested"),
        pytest.param("l.json", '[{"name": "a", "color": 1}]', "nothing else", id="json-extra"),
        pytest.param("l.csv", "colour\ncat\n", "must have a column called name", id="csv-header"),
        pytest.param(
            "l.csv", "name,synset\ncat,n1\n", "the synset of the class 0", id="bad-synset"
        ),
        pytest.param("l.yaml", "- cat", "must end in one of", id="suffix"),
    ],
)
def test_read_labels_of_an_invalid_file_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)

    with pytest.raises(LabelsInvalid, match=message):
        read_labels(tmp_path / name)


def test_read_labels_of_a_missing_file_is_refused(tmp_path):
    with pytest.raises(LabelsInvalid, match=r"none.txt: No such file"):
        read_labels(tmp_path / "none.txt")


def test_read_labels_of_a_binary_file_is_refused(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"k\xe4se")

    with pytest.raises(LabelsInvalid, match=r"l.txt: not UTF-8 text"):
        read_labels(tmp_path / "l.txt")

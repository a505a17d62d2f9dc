import pytest

from contract.manifest import Label
from training.data.labels import imagenet_labels, read_labels
from training.errors import LabelsInvalid


def test_imagenet_labels_are_in_the_networks_order():
    labels = imagenet_labels()

    assert len(labels) == 1000
    assert labels[293] == Label(index=293, name="cheetah", synset="n02130308")
    assert labels[0].name == "tench"
    assert labels[999].name == "toilet tissue"


def test_imagenet_labels_that_share_a_name_differ_in_synset():
    cranes = [label for label in imagenet_labels() if label.name == "crane"]

    assert len({label.synset for label in cranes}) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("labels.txt", "cat\ndog\n", id="lines"),
        pytest.param("labels.txt", "\ufeffcat\r\ndog\r\n", id="lines-from-windows"),
        pytest.param("labels.json", '["cat", "dog"]', id="json-list"),
        pytest.param("labels.json", '{"1": "dog", "0": "cat"}', id="json-by-index"),
        pytest.param("labels.json", '[{"name": "cat"}, {"name": "dog"}]', id="json-objects"),
        pytest.param("labels.csv", "name\ncat\ndog\n", id="csv"),
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
    ],
)
def test_read_labels_reads_synsets(tmp_path, name, text):
    (tmp_path / name).write_text(text)

    assert read_labels(tmp_path / name)[0].synset == "n02130308"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        pytest.param("l.txt", "", "contains no labels", id="empty"),
        pytest.param("l.txt", "cat\n\ndog\n", "label name", id="empty-line"),
        pytest.param("l.txt", "cat\ncat\n", "'cat' occurs more than once", id="twice"),
        pytest.param("l.json", "{", "l.json: Expecting", id="broken-json"),
        pytest.param("l.json", "3", "expected a list", id="json-number"),
        pytest.param("l.json", '{"0": "a", "2": "b"}', "without a gap", id="json-gap"),
        pytest.param("l.json", '[["a"]]', "each entry must be", id="json-nested"),
        pytest.param("l.json", '[{"name": "a", "color": 1}]', "each entry must", id="json-extra"),
        pytest.param("l.csv", "label\ncat\n", "must have a column called name", id="csv-header"),
        pytest.param("l.csv", "name,synset\ncat,n1\n", "label synset", id="bad-synset"),
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
    (tmp_path / "l.txt").write_bytes(b"\xff\xfe\xfa")

    with pytest.raises(LabelsInvalid, match=r"l.txt"):
        read_labels(tmp_path / "l.txt")

import pytest

from tests.training.helpers.picture_sets import samples
from training.data.samples import SPLITS, DataSet, Sample, SamplePictures


def test_sample_reads_its_file_or_its_bytes(tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"on the disk")

    assert Sample("1", 0, path=tmp_path / "1.jpg").read() == b"on the disk"
    assert Sample("2", 0, data=b"in memory").read() == b"in memory"
    assert Sample("3", 0, data=b"").read() == b""


def test_sample_without_content_is_a_missing_file():
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        Sample("gone.jpg", 0).read()


def test_sample_repr_leaves_out_its_bytes():
    assert "secret" not in repr(Sample("1", 0, data=b"secret"))


def test_data_set_returns_its_splits_by_name():
    train, validation, test = samples("1"), samples("2", "3"), samples("4")
    data = DataSet("made", (), train, validation, test)

    assert [data.split(name) for name in SPLITS] == [train, validation, test]
    assert data.n_classes == 0


def test_sample_pictures_are_read_again_on_every_pass(tmp_path):
    path = tmp_path / "1.jpg"
    pictures = SamplePictures([Sample("train/1.jpg", 3, path=path)])

    path.write_bytes(b"first")
    first = list(pictures)
    path.write_bytes(b"second")
    second = list(pictures)

    assert [(one.name, one.data, one.index) for one in first] == [("train/1.jpg", b"first", 3)]
    assert second[0].data == b"second"
    assert len(pictures) == 1

from pathlib import Path

import pytest

from training.system.files import write_whole


def test_write_whole_replaces_a_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_whole(path, b"one")

    write_whole(path, b"two")

    assert path.read_bytes() == b"two"
    assert [one.name for one in path.parent.iterdir()] == ["a.txt"]


def test_interrupted_write_whole_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_whole(path, b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"

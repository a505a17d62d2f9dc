import dataclasses
import io

import pytest
import torch

from tests.training.helpers import runs
from training.errors import CheckpointRefused
from training.learning import checkpoint
from training.learning.checkpoint import Checkpoints, identity_of


def _identity(data=None, **changes):
    return identity_of(runs.config(**changes), data or runs.data_set(6, 3))


def _checkpoints(folder, **changes):
    return Checkpoints(folder, _identity(**changes))


def _state(number):
    return {"network": {"weight": torch.full((2,), float(number))}, "step": number}


def _step(checkpoints):
    return checkpoints.open(checkpoints.read_last())["step"]


def _damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_seal_gives_a_file_that_torch_opens_with_weights_only(tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(checkpoint.seal({"a": torch.arange(3), "b": [1, 2.5, None, "text", True]}))

    state = torch.load(path, weights_only=True)

    assert state["a"].tolist() == [0, 1, 2]
    assert state["b"] == [1, 2.5, None, "text", True]


@pytest.mark.parametrize("at", [0, 100, -70, -65, -1], ids=str)
def test_is_whole_detects_a_flipped_bit_anywhere(at):
    sealed = checkpoint.seal(_state(1))
    damaged = bytearray(sealed)
    damaged[at] ^= 1

    assert checkpoint.is_whole(sealed)
    assert not checkpoint.is_whole(bytes(damaged))


@pytest.mark.parametrize("keep", [0, 1, 66, 200, -1], ids=str)
def test_is_whole_detects_a_truncated_file(keep):
    assert not checkpoint.is_whole(checkpoint.seal(_state(1))[:keep])


def test_load_never_executes_code_in_a_file():
    buffer = io.BytesIO()
    torch.save({"network": print}, buffer)

    with pytest.raises(CheckpointRefused, match="more than tensors") as refused:
        checkpoint.load(buffer.getvalue())

    assert "weights_only" not in str(refused.value)


def test_load_of_a_single_tensor_is_refused():
    buffer = io.BytesIO()
    torch.save(torch.ones(1), buffer)

    with pytest.raises(CheckpointRefused, match="no training state"):
        checkpoint.load(buffer.getvalue())


def test_checkpoints_keep_the_last_and_the_previous_one(tmp_path):
    checkpoints = _checkpoints(tmp_path)

    for number in (1, 2, 3):
        checkpoints.write_last(_state(number))

    assert _step(checkpoints) == 3
    previous = (checkpoints.folder / checkpoint.PREVIOUS).read_bytes()
    assert checkpoints.open(previous)["step"] == 2
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
        checkpoint.PREVIOUS,
        checkpoint.LAST,
    ]


def test_checkpoints_with_a_damaged_last_one_fall_back_to_the_previous(tmp_path, caplog):
    checkpoints = _checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.write_last(_state(number))
    _damage(checkpoints.folder / checkpoint.LAST)

    assert _step(checkpoints) == 1
    assert caplog.messages == ["last.pt is damaged; resuming from last.previous.pt"]


def test_checkpoints_keep_an_intact_previous_one_when_a_damaged_last_is_replaced(tmp_path):
    """The damaged file must not take the place of the good one between the two renames."""
    checkpoints = _checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.write_last(_state(number))
    _damage(checkpoints.folder / checkpoint.LAST)
    _step(checkpoints)

    checkpoints.write_last(_state(3))

    previous = (checkpoints.folder / checkpoint.PREVIOUS).read_bytes()
    assert checkpoints.open(previous)["step"] == 1
    assert _step(checkpoints) == 3


def test_checkpoints_after_a_kill_between_the_renames_resume_from_the_previous(tmp_path):
    checkpoints = _checkpoints(tmp_path)
    checkpoints.write_last(_state(1))
    (checkpoints.folder / checkpoint.LAST).rename(checkpoints.folder / checkpoint.PREVIOUS)

    assert checkpoints.exist
    assert _step(checkpoints) == 1


def test_checkpoints_after_a_kill_while_writing_keep_the_last(tmp_path, monkeypatch):
    checkpoints = _checkpoints(tmp_path)
    checkpoints.write_last(_state(1))

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.system.files.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write_last(_state(2))

    assert _step(checkpoints) == 1


def test_checkpoints_that_are_all_damaged_are_refused(tmp_path):
    checkpoints = _checkpoints(tmp_path)
    for number in (1, 2):
        checkpoints.write_last(_state(number))
    for name in (checkpoint.LAST, checkpoint.PREVIOUS):
        _damage(checkpoints.folder / name)

    with pytest.raises(CheckpointRefused, match=r"last\.pt and last\.previous\.pt .* are damaged"):
        checkpoints.read_last()


def test_checkpoints_of_a_new_folder_do_not_exist(tmp_path):
    checkpoints = _checkpoints(tmp_path / "new")

    assert not checkpoints.exist
    assert checkpoints.read_last() is None


def test_checkpoints_of_another_config_are_refused_with_the_keys_that_differ(tmp_path):
    _checkpoints(tmp_path).write_last(_state(1))

    with pytest.raises(CheckpointRefused, match=r"optimizer\.learning_rate was 0\.01 and is 0\.5"):
        _step(_checkpoints(tmp_path, optimizer__learning_rate=0.5))


def test_checkpoints_of_a_config_with_another_note_are_accepted(tmp_path):
    _checkpoints(tmp_path).write_last(_state(1))

    assert _step(_checkpoints(tmp_path, note__expected="98%")) == 1


def _with_first(whole, **changes):
    first, *others = whole.train
    return dataclasses.replace(whole, train=(dataclasses.replace(first, **changes), *others))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: dataclasses.replace(data, test=data.test[1:]), id="one-less"),
        pytest.param(lambda data: _with_first(data, index=2), id="another-class"),
        pytest.param(lambda data: _with_first(data, name="x.png"), id="another-name"),
        pytest.param(lambda data: _with_first(data, data=b"x"), id="another-content"),
    ],
)
def test_checkpoints_of_other_data_are_refused(tmp_path, change):
    data = runs.data_set(6, 3)
    _checkpoints(tmp_path).write_last(_state(1))

    with pytest.raises(CheckpointRefused, match="other data: then colours: 6 train"):
        _step(Checkpoints(tmp_path, _identity(change(data))))


def test_identity_depends_on_file_sizes_and_accepts_missing_files(tmp_path):
    data, path = runs.data_set(3, 3), tmp_path / "a.png"
    found = []
    for content in (b"12", b"123", None):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        found.append(_identity(_with_first(data, data=None, path=path)).data_sha256)

    assert len(set(found)) == 3


def test_checkpoints_of_another_format_are_refused(tmp_path, monkeypatch):
    checkpoints = _checkpoints(tmp_path)
    monkeypatch.setattr(checkpoint, "_FORMAT", 99)
    checkpoints.write_last(_state(1))
    monkeypatch.undo()

    with pytest.raises(CheckpointRefused, match="format 99"):
        _step(checkpoints)


def test_checkpoints_write_the_best_epoch_to_a_separate_file(tmp_path):
    checkpoints = _checkpoints(tmp_path)

    checkpoints.write_best(_state(7))

    assert not checkpoints.exist
    whole = torch.load(checkpoints.folder / checkpoint.BEST, weights_only=True)
    assert whole["step"] == 7

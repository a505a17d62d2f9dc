import dataclasses
import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import runs, tinynet
from training.errors import CheckpointRefused
from training.learning import learner, loop
from training.learning.checkpoint import LAST, PREVIOUS
from training.learning.loop import train
from training.learning.validation import ValidationScore
from training.system.signals import Interrupted, Terminated

_CHANGES: dict[str, Any] = {
    "loop__ema_decay": 0.9,
    "loop__accumulate": 2,
    "loop__label_smoothing": 0.1,
    "augment__mixup": 0.2,
    "augment__cutmix": 1.0,
    "schedule__epochs": 3,
}  # 22 pictures in batches of 6: 2 steps per epoch, 6 in all
_TIMES = ("images_per_s", "seconds", "train_s")


class Killed(BaseException):
    """Ends a run at once, as kill -9 does."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder and the result of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train(runs.run(folder, **_CHANGES))


def _comparable(value):
    """Returns the state without times and with tensors as lists, so that == compares it."""
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items() if key not in _TIMES}
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor) else value


def _state(folder):
    state = torch.load(folder / "checkpoints" / LAST, weights_only=True)
    del state["identity"]  # the interval of the checkpoints is part of the config
    return _comparable(state)


def _log(folder):
    return [
        _comparable(json.loads(line)) for line in (folder / "log.jsonl").read_text().splitlines()
    ]


def _assert_same(folder, trained, uninterrupted):
    expected_folder, expected = uninterrupted
    weights = expected.network.state_dict()
    for name, value in trained.network.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert _state(folder) == _state(expected_folder)  # optimizer, average, sums, history, best
    assert _log(folder) == _log(expected_folder)


def _before_call(monkeypatch, method, number, action):
    """Runs an action once, before the given call of a method of Learner. Calls count from 1."""
    real, calls = getattr(learner.Learner, method), []

    def counted(*arguments):
        calls.append(1)
        if len(calls) == number:
            action()
        return real(*arguments)

    monkeypatch.setattr(learner.Learner, method, counted)


def _send_signal(number):
    return lambda: signal.raise_signal(number)


def _raise_killed():
    raise Killed


@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_train_terminated_and_resumed_equals_the_uninterrupted_run(
    tmp_path, monkeypatch, uninterrupted, at
):
    with monkeypatch.context() as patch:
        _before_call(patch, "step", at, _send_signal(signal.SIGTERM))
        with pytest.raises(Terminated, match=rf"stopped after step {at} of 6; .*resume"):
            train(runs.run(tmp_path, **_CHANGES))

    trained = train(runs.run(tmp_path, **_CHANGES), resume=True)

    _assert_same(tmp_path, trained, uninterrupted)


def test_train_terminated_while_validating_repeats_the_validation(
    tmp_path, monkeypatch, uninterrupted
):
    with monkeypatch.context() as patch:
        _before_call(
            patch, "logits", 3, _send_signal(signal.SIGTERM)
        )  # first batch of the second epoch's
        with pytest.raises(Terminated, match="after step 4"):
            train(runs.run(tmp_path, **_CHANGES))

    trained = train(runs.run(tmp_path, **_CHANGES), resume=True)

    _assert_same(tmp_path, trained, uninterrupted)


def test_train_terminated_twice_equals_the_uninterrupted_run(tmp_path, monkeypatch, uninterrupted):
    for resume in (False, True):
        with monkeypatch.context() as patch:
            _before_call(patch, "step", 2, _send_signal(signal.SIGTERM))
            with pytest.raises(Terminated):
                train(runs.run(tmp_path, **_CHANGES), resume=resume)

    trained = train(runs.run(tmp_path, **_CHANGES), resume=True)

    _assert_same(tmp_path, trained, uninterrupted)


@pytest.mark.parametrize("at", [1, 4, 6])
@pytest.mark.parametrize("checkpoint_s", [0.0, 1e9], ids=["every-step", "every-epoch"])
def test_train_killed_and_resumed_equals_the_uninterrupted_run(
    tmp_path, monkeypatch, uninterrupted, at, checkpoint_s
):
    changes = {**_CHANGES, "loop__checkpoint_s": checkpoint_s}
    with monkeypatch.context() as patch:
        _before_call(patch, "step", at, _raise_killed)
        with pytest.raises(Killed):
            train(runs.run(tmp_path, **changes))

    trained = train(runs.run(tmp_path, **changes), resume=True)

    _assert_same(tmp_path, trained, uninterrupted)


def test_train_with_a_damaged_last_checkpoint_resumes_from_the_previous(
    tmp_path, monkeypatch, uninterrupted, caplog
):
    with monkeypatch.context() as patch:
        _before_call(patch, "step", 5, _send_signal(signal.SIGTERM))
        with pytest.raises(Terminated):
            train(runs.run(tmp_path, **_CHANGES))
    newest = tmp_path / "checkpoints" / LAST
    newest.write_bytes(newest.read_bytes()[:-1000])
    caplog.clear()

    trained = train(runs.run(tmp_path, **_CHANGES), resume=True)

    assert caplog.messages[:2] == [
        "last.pt is damaged; resuming from last.previous.pt",
        "resuming after step 4 of 6",
    ]
    _assert_same(tmp_path, trained, uninterrupted)


def test_train_resumed_without_a_checkpoint_starts_over(tmp_path, uninterrupted):
    (tmp_path / "log.jsonl").write_text('{"event": "step", "step": 1}\n')  # killed before any

    trained = train(runs.run(tmp_path, **_CHANGES), resume=True)

    _assert_same(tmp_path, trained, uninterrupted)


def test_train_resumed_after_its_end_returns_the_same_result(tmp_path):
    first = train(runs.run(tmp_path, **_CHANGES))

    again = train(runs.run(tmp_path, **_CHANGES), resume=True)

    assert again.history == first.history
    assert _comparable(again.network.state_dict()) == _comparable(first.network.state_dict())


def test_train_refuses_the_checkpoint_of_another_release(tmp_path, monkeypatch):
    train(runs.run(tmp_path, **_CHANGES))
    monkeypatch.setattr(loop, "EpochRecord", lambda epoch: epoch)  # with fewer fields

    with pytest.raises(CheckpointRefused, match="another release"):
        train(runs.run(tmp_path, **_CHANGES), resume=True)


def test_train_resumed_keeps_an_earlier_best_epoch(tmp_path, monkeypatch):
    """The worse epoch after the resume must not replace it."""
    scores = iter([ValidationScore(1.0, 0.1, 0.1, 1.0)] + 2 * [ValidationScore(0.0, 9.0, 9.0, 1.0)])
    monkeypatch.setattr(loop, "score_validation", lambda *_: next(scores))
    with monkeypatch.context() as patch:
        _before_call(patch, "step", 4, _send_signal(signal.SIGTERM))
        with pytest.raises(Terminated):
            train(runs.run(tmp_path, **_CHANGES))
    (tmp_path / "checkpoints" / "best.pt").unlink()

    trained = train(runs.run(tmp_path, **_CHANGES), resume=True)

    best = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    assert trained.best.epoch == best["epoch"]["epoch"] == 1
    assert _comparable(trained.network.state_dict()) == _comparable(best["network"])


def test_train_resumed_in_another_environment_logs_the_difference(tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        _before_call(patch, "step", 1, _send_signal(signal.SIGTERM))
        with pytest.raises(Terminated):
            train(runs.run(tmp_path, **_CHANGES))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)

    train(runs.run(tmp_path, **_CHANGES), resume=True)

    assert any(line.startswith("threads: ") and "77 now" in line for line in caplog.messages)


def test_train_writes_checkpoints_by_the_clock(tmp_path, monkeypatch):
    now_s = [0.0]
    written = []

    def tick():
        now_s[0] += 0.5
        written.append(_inode(tmp_path))
        return now_s[0]

    monkeypatch.setattr("training.system.files.os.fsync", lambda _: None)
    run = runs.run(tmp_path, loop__checkpoint_s=3.0, schedule__epochs=1, loop__batch_size=2)
    train(dataclasses.replace(run, clock=tick))

    assert 2 <= len(set(written)) < 11  # 11 steps, with some checkpoints but not one per step


def _inode(folder):
    path = folder / "checkpoints" / LAST
    return path.stat().st_ino if path.exists() else None


@pytest.mark.parametrize(
    ("number", "error", "exit_code"),
    [
        pytest.param(signal.SIGTERM, Terminated, 143, id="SIGTERM"),
        pytest.param(signal.SIGINT, Interrupted, 130, id="SIGINT"),
    ],
)
def test_signal_becomes_an_error_with_its_exit_code(
    tmp_path, monkeypatch, number, error, exit_code
):
    before = signal.getsignal(number)
    _before_call(monkeypatch, "step", 1, _send_signal(number))

    with pytest.raises(Interrupted) as stopped:
        train(runs.run(tmp_path))

    assert (type(stopped.value), stopped.value.exit_code) == (error, exit_code)
    assert signal.getsignal(number) is before


def test_second_sigint_ends_the_run_at_once(tmp_path, monkeypatch):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    _before_call(monkeypatch, "step", 1, twice)

    with pytest.raises(KeyboardInterrupt):
        train(runs.run(tmp_path))

    assert not (tmp_path / "checkpoints" / PREVIOUS).exists()


def test_train_resumed_with_another_network_is_refused(tmp_path):
    train(runs.run(tmp_path, schedule__epochs=1))

    with pytest.raises(CheckpointRefused, match="of another network"):
        train(runs.run(tmp_path, tinynet.TinyNet(), schedule__epochs=1), resume=True)


def test_train_outside_the_main_thread_installs_no_signal_handlers(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        trained = pool.submit(train, runs.run(tmp_path, schedule__epochs=1)).result()

    assert len(trained.history) == 1


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("number", "exit_code"),
    [
        pytest.param(signal.SIGTERM, 143, id="SIGTERM"),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="SIGKILL"),
    ],
)
@pytest.mark.timeout(180)
def test_process_stopped_by_a_real_signal_resumes_to_the_same_weights(
    tmp_path, uninterrupted, number, exit_code
):
    """The child waits in the middle of its fourth step until the signal is sent."""
    command = [sys.executable, "-m", "tests.training.learning.test_resume", str(tmp_path)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(  # noqa: S603 - our own interpreter and file
        [*command, "4"], cwd=root, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        child.send_signal(number)
        child.stdin.close()
        child.wait(60)
    assert child.returncode == exit_code

    trained = train(runs.run(tmp_path, **_CHANGES), resume=True)

    _assert_same(tmp_path, trained, uninterrupted)


def _main(folder: str, wait_at: str) -> None:
    """Trains. In the given step, tells the parent and waits until it closes the pipe."""

    def wait() -> None:
        print("waiting", flush=True)  # noqa: T201 - the parent reads it
        sys.stdin.read()

    _before_call(pytest.MonkeyPatch(), "step", int(wait_at), wait)
    try:
        train(runs.run(Path(folder), **_CHANGES))
    except Interrupted as error:
        sys.exit(error.exit_code)


if __name__ == "__main__":
    _main(*sys.argv[1:])

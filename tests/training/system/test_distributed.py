"""Distributed training in two gloo processes, started as torchrun starts them.

They run once, and several tests read their results.
"""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.run import get_args_parser

from tests.training.helpers import runs
from training.__main__ import fit_command
from training.data.augment import Augmentation
from training.data.batches import Batches, Sampling
from training.errors import ConfigInvalid, DataRefused
from training.learning import learner
from training.learning.loop import train
from training.system.distributed import World, choose_device, joined
from training.system.signals import Terminated

_CHANGES: dict[str, Any] = {
    "loop__label_smoothing": 0.1,
    "loop__class_weights": True,
    "loop__accumulate": 2,
    "loop__ema_decay": 0.9,
    "augment__mixup": 0.2,
    "augment__cutmix": 1.0,
}


def _learner(world):
    network = runs.SmallNet(norm=False, dropout=0.0)
    run = dataclasses.replace(runs.run(Path(), network, **_CHANGES), world=world)
    return learner.Learner(run, epoch_steps=2)


def _batches(rank, size):
    config = runs.config(**_CHANGES)
    batches = Batches(
        runs.data_set().train,
        Augmentation(config.augment, runs.spec()),
        batch_size=5,
        sampling=Sampling(config.seed),
    )
    return list(batches.epoch(0, rank=rank, world=size))


def _gradients(world):
    """Returns the gradient of one step of two batches of 5 pictures, split into 2 and 3."""
    made = _learner(world)
    made.step(_batches(world.rank, world.size)[:2], 0, 0, lambda: (0, 0))
    return {name: value.grad for name, value in made.network.named_parameters()}


def _trained(world, folder):
    run = runs.run(folder, runs.SmallNet(norm=False, dropout=0.0), **_CHANGES)
    trained = train(dataclasses.replace(run, world=world))
    return {"weights": trained.network.state_dict(), "nll": trained.best.validation_nll}


def test_world_of_one_process_needs_no_communication():
    world = World(device=torch.device("cpu"))
    network = torch.nn.Linear(1, 1)

    world.barrier()
    world.share_buffers(network)

    assert world.is_first
    assert world.sum([1, 2.5]) == [1.0, 2.5]
    assert world.broadcast("x") == "x"
    assert world.gather("x") == ["x"]
    assert world.first(lambda: 7) == 7
    assert world.wrap(network) is network


def test_joined_without_torchrun_is_a_world_of_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)

    with joined("cpu") as world:
        assert (world.rank, world.size, world.device.type) == (0, 1, "cpu")
        assert not distributed.is_initialized()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("gpu", "unknown device 'gpu'", id="unknown"),
        pytest.param("cuda", "no CUDA device", id="not-there"),
    ],
)
def test_choose_device_refuses_a_missing_device(monkeypatch, name, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ConfigInvalid, match=message):
        choose_device(name)


@pytest.mark.parametrize(("there", "device"), [(True, "cuda"), (False, "cpu")])
def test_choose_device_auto_takes_cuda_if_available(monkeypatch, there, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)

    assert choose_device("auto").type == device


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The results of two processes, by rank, and their exit codes."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    processes = [
        subprocess.Popen(  # noqa: S603 - our own interpreter and file
            [sys.executable, "-m", "tests.training.system.test_distributed", str(folder)],
            cwd=Path(__file__).parents[3],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
        )
        for rank in "01"
    ]

    codes = [process.wait(150) for process in processes]
    results = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return folder, results, codes


two_processes = [pytest.mark.e2e, pytest.mark.timeout(180)]


class TestTwoProcesses:
    pytestmark = two_processes

    def test_gradient_of_the_same_global_batch_equals_that_of_one_process(self, pair):
        _, (first, second), _ = pair

        alone = _gradients(runs.WORLD)

        for name, gradient in alone.items():
            torch.testing.assert_close(first["gradients"][name], gradient, rtol=1e-5, atol=1e-6)
            assert torch.equal(first["gradients"][name], second["gradients"][name])

    def test_pictures_of_an_epoch_are_the_same_as_those_of_one_process(self, pair):
        _, (first, second), _ = pair

        for one, other, whole in zip(
            first["numbers"], second["numbers"], _batches(0, 1), strict=True
        ):
            assert sorted([*one, *other]) == sorted(whole.numbers.tolist())

    def test_run_ends_with_nearly_the_weights_of_one_process(self, pair, tmp_path):
        _, (first, second), _ = pair

        alone = _trained(runs.WORLD, tmp_path)

        assert first["trained"]["nll"] == second["trained"]["nll"]
        assert first["trained"]["nll"] == pytest.approx(alone["nll"], rel=1e-4)
        for name, value in alone["weights"].items():
            torch.testing.assert_close(
                first["trained"]["weights"][name], value, rtol=1e-3, atol=1e-4
            )
            assert torch.equal(
                first["trained"]["weights"][name], second["trained"]["weights"][name]
            )

    def test_sums_objects_and_errors_reach_both_processes(self, pair):
        for result in pair[1]:
            assert result["sum"] == [3.0, 0.5]
            assert result["broadcast"] == {"rank": 0}
            assert result["error"] == "DataRefused: of the first"
            assert result["buffer"] == 0.0

    def test_sigterm_to_one_process_stops_both_at_the_same_step(self, pair):
        folder, (first, second), codes = pair

        last = torch.load(folder / "stopped" / "checkpoints" / "last.pt", weights_only=True)
        assert first["stopped"] == second["stopped"]
        assert first["stopped"].startswith("stopped after step 2 of 4")
        assert (len(last["history"]), last["sums"]["steps"]) == (0, 2)
        assert last["surroundings"]["processes"] == "2"
        assert codes == [143, 143]


def _main(folder: Path) -> None:
    """Runs in each of the two processes."""
    with joined("cpu") as world:
        result: dict[str, Any] = {
            "gradients": _gradients(world),
            "numbers": [batch.numbers.tolist() for batch in _batches(world.rank, world.size)],
            "sum": world.sum([1 + world.rank, 0.25]),
            "broadcast": world.broadcast({"rank": world.rank}),
            "error": _shared_error(world),
            "buffer": _shared_buffer(world),
            "trained": _trained(world, folder / "trained"),
        }

        try:
            _stop_second(world, folder / "stopped")
        except Terminated as error:
            result["stopped"] = str(error)
            torch.save(result, folder / f"{world.rank}.pt")
            sys.exit(error.exit_code)


def _shared_error(world: World) -> str:
    def refuse() -> int:
        assert world.is_first
        raise DataRefused("of the first")

    try:
        world.first(refuse)
    except DataRefused as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def _shared_buffer(world: World) -> float:
    network = torch.nn.BatchNorm1d(1)
    torch.nn.init.constant_(network.running_mean, world.rank)  # type: ignore[arg-type] # it has one
    world.share_buffers(network)
    return float(network.running_mean)  # type: ignore[arg-type] # it has one


def _stop_second(world: World, folder: Path) -> None:
    """Trains a network with batch norms; the second process gets SIGTERM in its second step."""
    real = learner.Learner.step

    def step(*arguments: Any) -> learner.StepOutcome:
        if world.rank == 1 and arguments[3] == 1:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    learner.Learner.step = step  # type: ignore[method-assign, assignment]
    train(dataclasses.replace(runs.run(folder, **_CHANGES), world=world))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))


@pytest.mark.parametrize("option", fit_command.params, ids=lambda option: option.name)
def test_every_flag_of_fit_passes_torchrun_unchanged(option):
    """torchrun's parser also takes abbreviations of its own flags after the module's name."""

    def arrives(flag):
        try:
            parsed = get_args_parser().parse_args(["-m", "training", "fit", flag])
        except SystemExit:
            return False
        return parsed.training_script_args == ["fit", flag]

    assert any(arrives(flag) for flag in option.opts)

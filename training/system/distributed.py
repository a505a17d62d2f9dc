"""Training in several processes under torchrun, on one or more machines.

Each process holds the whole network and computes its part of each global batch. DDP averages the
gradients over the processes, so each one scales its loss by `World.size` to get their sum. Only the
first process writes files.

On CUDA, batch norms become `SyncBatchNorm` and see the whole global batch. On CPUs each process
normalises its own part, and the run keeps the statistics of the first process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import ConfigInvalid, TrainingError

Thing = TypeVar("Thing")

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


class World:
    """The processes of a run, as one of them sees it. With a single process nothing is sent.

    `rank` counts from 0, `size` is the number of processes.
    """

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.size = size

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Returns the sum of each value over all processes, in float64.

        One all-reduce per call: 1 ms with gloo between two processes on a busy machine.
        """
        if self.size == 1:
            return [float(value) for value in values]
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        return [float(value) for value in sums.tolist()]

    def broadcast(self, thing: Thing) -> Thing:
        """Returns the first process's object in every process; meant for small objects.

        Uses pickle, which is safe only between the processes of one run.
        """
        if self.size == 1:
            return thing
        box: list[Any] = [thing]
        distributed.broadcast_object_list(box, src=0, device=self.device)
        received: Thing = box[0]
        return received

    def gather(self, thing: Thing) -> list[Thing]:
        """Returns each process's object, by rank, in every process.

        Uses pickle, which is safe only between the processes of one run.
        """
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        distributed.all_gather_object(things, thing)
        return things

    def first(self, action: Callable[[], Thing]) -> Thing:
        """Runs the action in the first process only and returns its result in all of them.

        Raises:
            TrainingError: the action raised it; every process raises the same error.
        """
        outcome: Thing | TrainingError | None = None
        if self.is_first:
            try:
                outcome = action()
            except TrainingError as error:
                outcome = error
        # Errors are broadcast too: otherwise the other processes would wait forever.
        outcome = self.broadcast(outcome)
        if isinstance(outcome, TrainingError):
            raise outcome
        return cast("Thing", outcome)

    def barrier(self) -> None:
        if self.size > 1:
            distributed.barrier()

    def wrap(self, network: nn.Module) -> nn.Module:
        """Returns a network that averages gradients over the processes in its backward pass.

        Copies the parameters and buffers of the first process to all others.
        """
        if self.size == 1:
            return network
        devices = None if self.device.type == "cpu" else [self.device]
        return DistributedDataParallel(network, device_ids=devices)

    def without_exchange(self, wrapped: nn.Module, active: bool) -> AbstractContextManager[object]:
        """Returns a context in which backward passes do not exchange gradients, if `active`."""
        if active and isinstance(wrapped, DistributedDataParallel):
            return wrapped.no_sync()
        return nullcontext()

    def share_buffers(self, network: nn.Module) -> None:
        # Such as batch norm statistics, which the optimizer does not keep equal.
        if self.size > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, src=0)


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigInvalid(f'unknown device {name!r}; choose "auto", "cpu" or "cuda"')
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigInvalid("torch finds no CUDA device; use --device cpu")
    return torch.device(name)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Joins the processes that torchrun started; without torchrun, the world is one process.

    Args:
        device: "auto", "cpu" or "cuda"; each process of a machine uses its own CUDA device.

    Raises:
        ConfigInvalid: the device is unknown or not available.
    """
    chosen = choose_device(device)
    if not all(name in os.environ for name in _TORCHRUN):
        yield World(chosen)
        return

    rank, size, local_rank = (int(os.environ[name]) for name in _TORCHRUN)
    if chosen.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigInvalid(
                f"process {local_rank} has no CUDA device: this machine has "
                f"{torch.cuda.device_count()}; start no more processes per machine than that"
            )
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
        distributed.init_process_group("nccl", device_id=chosen)
    else:
        distributed.init_process_group("gloo")

    try:
        yield World(chosen, rank, size)
    finally:
        distributed.destroy_process_group()

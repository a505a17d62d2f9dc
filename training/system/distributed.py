"""One run in several processes, as torchrun starts them, on one machine or more.

Every process holds the whole network and computes its part of each global batch; gradients are
averaged over the processes, so a process scales its loss by `World.size` to make that average the
sum. Only the first process writes files.

Batch norms: on CUDA devices they become `SyncBatchNorm` and see the whole global batch. On CPUs each
process normalises by its own part, and the statistics kept are those of the first process.
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
    """The processes of a run, seen from one of them; a single process needs no communication.

    Args:
        device: where this process computes.
        rank: of this process, 0 upwards.
        size: number of processes.
    """

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.size = size

    @property
    def is_first(self) -> bool:
        """This is the process that writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Returns the sums of each value over all processes, in float64.

        One round of messages a call: 1 ms with gloo between two processes of a busy machine.
        """
        if self.size == 1:
            return [float(value) for value in values]
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        return [float(value) for value in sums.tolist()]

    def broadcast(self, thing: Thing) -> Thing:
        """Returns the first process's small object in every process.

        It travels pickled, which is safe among processes of one run and nowhere else.
        """
        if self.size == 1:
            return thing
        box: list[Any] = [thing]
        distributed.broadcast_object_list(box, src=0, device=self.device)
        received: Thing = box[0]
        return received

    def first(self, action: Callable[[], Thing]) -> Thing:
        """Returns in every process what the action gives in the first one, which alone runs it.

        Raises:
            TrainingError: the action raised it, and every process does.
        """
        outcome: Thing | TrainingError | None = None
        if self.is_first:
            try:
                outcome = action()
            except TrainingError as error:
                outcome = error
        outcome = self.broadcast(outcome)
        if isinstance(outcome, TrainingError):
            raise outcome
        return cast("Thing", outcome)

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.size > 1:
            distributed.barrier()

    def wrap(self, network: nn.Module) -> nn.Module:
        """Returns a network whose backward pass averages gradients over the processes.

        The parameters and buffers of the first process are copied to all.
        """
        if self.size == 1:
            return network
        devices = None if self.device.type == "cpu" else [self.device]
        return DistributedDataParallel(network, device_ids=devices)

    def without_exchange(self, wrapped: nn.Module, active: bool) -> AbstractContextManager[object]:
        """Returns a context whose backward passes only add to this process's gradients.

        Args:
            wrapped: from `wrap`.
            active: False makes the context do nothing.
        """
        if active and isinstance(wrapped, DistributedDataParallel):
            return wrapped.no_sync()
        return nullcontext()

    def share_buffers(self, network: nn.Module) -> None:
        """Copies the first process's buffers, such as batch norm statistics, to all."""
        if self.size > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, src=0)


def choose_device(name: str) -> torch.device:
    """Returns the device of a name; "auto" is CUDA where there is one.

    Raises:
        ConfigInvalid: torch does not know the device, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise ConfigInvalid(f'the device {name!r} is unknown; take "auto", "cpu" or "cuda"')
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigInvalid("torch finds no CUDA device here")
    return torch.device(name)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Joins the processes torchrun started, or is a world of one without it.

    Args:
        device: "auto", "cpu" or "cuda"; each process of a machine takes a CUDA device of its own.

    Raises:
        ConfigInvalid: there is no such device.
    """
    chosen = choose_device(device)
    if not all(name in os.environ for name in _TORCHRUN):
        yield World(chosen)
        return
    rank, size, local_rank = (int(os.environ[name]) for name in _TORCHRUN)
    if chosen.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigInvalid(
                f"process {local_rank} of this machine finds {torch.cuda.device_count()} CUDA "
                "devices; start torchrun with as many processes as there are devices"
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

"""One optimizer step: loss, gradients of all parts, clipping, moving average, schedule.

It knows neither files nor epochs.

Shapes: B pictures of a batch, S = crop size in pixels, C classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it so
from numpy.typing import NDArray
from torch import Tensor, nn

from training.data.augment import mix
from training.data.batches import Batch
from training.data.samples import DataSet
from training.errors import LossNotFinite
from training.learning import optim
from training.learning.run import TrainingRun
from training.networks.architectures import normalise
from training.system.distributed import World
from training.system.randomness import seed_of
from training.system.torch_compat import timm

# A float16 gradient that still overflows below this loss scale has diverged.
_MIN_LOSS_SCALE: Final = 2.0**-10

# Whether this process has received SIGTERM and SIGINT: 1 or 0 each.
Signals = Callable[[], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The result of a step, summed over all processes."""

    loss_sum: float  # with class weights
    hits: int  # predictions that match the main class of the mixed target
    n_images: int  # pictures that could be read
    gradient_norm: float  # before clipping
    signals: tuple[int, int]  # processes that received SIGTERM and SIGINT


class Learner:
    """A network with everything that changes while it trains.

    The run's network is trained in place on its device. With synchronised batch norms over several
    CUDA devices, a copy is trained.
    """

    def __init__(self, run: TrainingRun, epoch_steps: int) -> None:
        config, world = run.config, run.world
        optimizer, schedule = optim.second_stage(config)
        self._run, self._config, self._world = run, config, world

        layout = torch.channels_last if config.loop.channels_last else torch.preserve_format
        # torch's stubs lack a call with only a memory format.
        run.network.to(world.device).to(memory_format=layout)  # type: ignore[call-overload]
        self.network = _with_synchronised_batch_norms(run.network, world)
        self._still = optim.freeze(
            self.network,
            config.loop.trained_groups,
            freeze_batch_norm=config.loop.freeze_batch_norm,
        )

        self._precision = optim.decide_precision(config.loop.precision, world.device)
        self._optimizer = optim.make_optimizer(self.network, optimizer)
        self._schedule = optim.make_schedule(self._optimizer, schedule, epoch_steps)
        self._clip_norm = optimizer.clip_norm or math.inf
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=self._precision.scaled)

        self._wrapped = world.wrap(self.network)
        self._average = optim.make_average(self.network, config.loop.ema_decay)
        self._weights = class_weights(run.data) if config.loop.class_weights else None

    @property
    def kept(self) -> nn.Module:
        """The network that is validated and saved: the moving average if there is one."""
        return self.network if self._average is None else self._average.module

    @property
    def learning_rate(self) -> float:
        return optim.learning_rate(self._optimizer)

    @property
    def surroundings(self) -> dict[str, str]:
        """What the exact bits of the result depend on besides config and data."""
        return {
            "processes": str(self._world.size),
            "device": self._world.device.type,
            "precision": str(self._precision.dtype or torch.float32),
            "threads": str(torch.get_num_threads()),
            "torch": str(torch.__version__),
        }

    def step(
        self, batches: Sequence[Batch], first_batch: int, step: int, signals: Signals
    ) -> StepOutcome:
        """Makes one optimizer step.

        The gradient is that of the mean loss over all pictures of all batches and processes, no
        matter how they are divided, except that batch norms see each part separately. A picture that
        cannot be read counts, with a gradient of zero.

        Args:
            batches: this process's parts, one or more.
            first_batch: number of the first part in the whole run; random numbers depend on it.
            step: from 0; the learning rate depends on it.
            signals: whether this process was told to stop.

        Raises:
            LossNotFinite: the loss or the gradient is not finite; the weights are unchanged.
        """
        optim.set_training(self.network, self._still)
        self._schedule.step_update(step)
        self._optimizer.zero_grad(set_to_none=True)

        total = sum(batch.global_size for batch in batches)
        parts = []
        for at, batch in enumerate(batches):
            more_follow = at + 1 < len(batches)
            with self._world.without_exchange(self._wrapped, more_follow):
                parts.append(self._backward(batch, first_batch + at, total))

        loss_sum, hits = torch.stack(parts).sum(dim=0).tolist()  # the only wait for the device
        n_images = sum(len(batch.images) for batch in batches)
        # Signals travel with the loss in one message, so that all processes stop at the same step.
        sums = self._world.sum([loss_sum, hits, n_images, *signals()])
        if not math.isfinite(sums[0]):
            raise LossNotFinite(f"the loss is {sums[0]}")

        norm = self._update(step)
        return StepOutcome(sums[0], int(sums[1]), int(sums[2]), norm, (int(sums[3]), int(sums[4])))

    @torch.inference_mode()
    def logits(self, batch: Batch) -> NDArray[np.float32]:
        """Returns the logits of `kept`, (B, C), computed in float32 like the exported graph."""
        if len(batch.images) == 0:
            return np.empty((0, self._run.data.n_classes), dtype=np.float32)

        self.kept.eval()
        images = self._in_layout(self._prepare(batch.images))
        found: NDArray[np.float32] = self.kept(images).float().cpu().numpy()
        return found  # (B, C)

    def state(self) -> dict[str, Any]:
        """Returns tensors and plain values for `restore`.

        Raises:
            LossNotFinite: a weight is not finite, so the state must not be saved.
        """
        for name, value in self.network.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise LossNotFinite(f"{name} holds a value that is not finite")

        return {
            "network": self.network.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def _prepare(self, images: Tensor) -> Tensor:
        # uint8 pixels (B, 3, S, S) to the network's float32 input.
        moved = images.to(self._world.device, non_blocking=True)
        return normalise(moved, self._run.spec)

    def _backward(self, batch: Batch, number: int, total: int) -> Tensor:
        # Adds a part's gradients. Returns the sum of its losses and its hits, float64 (2,).
        if len(batch.images) == 0:
            self._backward_nothing()
            return torch.zeros(2, dtype=torch.float64, device=self._world.device)

        seed = self._config.seed
        images, targets = mix(
            self._prepare(batch.images),
            batch.indexes.to(self._world.device, non_blocking=True),
            self._config.augment,
            n_classes=self._run.data.n_classes,
            label_smoothing=self._config.loop.label_smoothing,
            seed=seed_of("mix", seed, number),
        )
        # Dropout depends on the step alone, so that a resumed run draws the same numbers.
        torch.manual_seed(seed_of("step", seed, number, self._world.rank))
        logits = self._forward(images)  # (B, C)

        weights = None if self._weights is None else self._weights.to(logits.device)
        loss = F.cross_entropy(logits, targets, weight=weights, reduction="sum")
        # DistributedDataParallel averages over processes; multiplying by their number undoes that.
        share: Any = self._scaler.scale(loss * (self._world.size / total))
        share.backward()
        hits = (logits.argmax(dim=1) == targets.argmax(dim=1)).sum()
        return torch.stack([loss.detach().double(), hits.double()])

    def _backward_nothing(self) -> None:
        # The other processes wait for this one's gradients even if it has no picture.
        side = self._run.spec.crop_size_px
        if not any(isinstance(part, nn.SyncBatchNorm) for part in self.network.modules()):
            self.network.eval()  # keeps the black picture out of the batch statistics
        black = torch.zeros((1, 3, side, side), dtype=torch.uint8)
        loss: Any = 0.0 * self._forward(self._prepare(black)).sum()
        loss.backward()
        optim.set_training(self.network, self._still)

    def _forward(self, images: Tensor) -> Tensor:
        with self._precision.autocast(self._world.device):
            logits: Tensor = self._wrapped(self._in_layout(images))
        return logits.float()

    def _in_layout(self, images: Tensor) -> Tensor:
        if not self._config.loop.channels_last:
            return images
        return images.contiguous(memory_format=torch.channels_last)

    def _update(self, step: int) -> float:
        # Returns the norm of the gradient before clipping.
        self._scaler.unscale_(self._optimizer)
        learning = [value for value in self.network.parameters() if value.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(learning, self._clip_norm).item())

        # The scaler skips steps that overflow and lowers its scale, down to a limit.
        may_overflow = self._precision.scaled and self._scaler.get_scale() >= _MIN_LOSS_SCALE
        if not math.isfinite(norm) and not may_overflow:
            raise LossNotFinite(f"the gradient is {norm}")

        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update(self.network, step + 2)
        return norm


@contextmanager
def deterministic() -> Iterator[None]:
    """Makes CUDA convolutions deterministic; on CPUs they always are."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def class_weights(data: DataSet) -> Tensor:
    """Returns the inverse frequency of each class in the training pictures, float32 (C,).

    The mean over the training pictures is 1. A class without pictures gets 0.
    """
    indexes = np.array([sample.index for sample in data.train], dtype=np.int64)
    counts = np.bincount(indexes, minlength=data.n_classes)
    present = np.count_nonzero(counts)
    weights = np.divide(
        len(indexes), present * counts, out=np.zeros(data.n_classes), where=counts > 0
    )
    return torch.from_numpy(weights).float()


def _with_synchronised_batch_norms(network: nn.Module, world: World) -> nn.Module:
    if world.size == 1 or world.device.type != "cuda":
        return network
    joined: nn.Module = timm().layers.convert_sync_batchnorm(copy.deepcopy(network))
    return joined

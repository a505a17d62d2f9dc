"""What learns, how fast, and in which arithmetic.

Layer groups, from the bottom to the top, are timm's (`group_matcher`); the classifier is always the
topmost one. Nothing here knows pictures, epochs or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.config.config import Optimizer, RunConfig, Schedule
from training.errors import ConfigInvalid, did_you_mean
from training.networks.architectures import classifiers
from training.system.torch_compat import timm

Groups = tuple[tuple[str, ...], ...]
"""Names of parameters, a tuple for each layer group, the bottom first."""

# timm's decay warm-up with these two is min(decay, (1 + n) / (10 + n)) after n updates, as
# TensorFlow's ExponentialMovingAverage has it: a short run does not end near its random start.
_EMA_GAMMA: Final = 9.0
_EMA_POWER: Final = 1.0

_CPU_BF16: Final = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Precision:
    """How forward passes are computed.

    Attributes:
        dtype: of autocast; None computes in float32.
        scaled: the loss is scaled up, because gradients would underflow in float16.
    """

    dtype: torch.dtype | None = None
    scaled: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Returns the context of a forward pass."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.dtype)


def decide_precision(name: str, device: torch.device) -> Precision:
    """Returns the precision a config asks for, on a device.

    Args:
        name: `auto`, `fp32`, `bf16` or `fp16`; `auto` is bf16 where the processor computes in it.
        device: where the network is.

    Raises:
        ConfigInvalid: fp16 on a CPU, which has no fast arithmetic for it.
    """
    if name == "auto":
        name = "bf16" if _computes_bf16(device) else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise ConfigInvalid(
            'loop.precision: "fp16" needs a CUDA device; on a CPU take "bf16", "fp32" or "auto"'
        )
    dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    return Precision(dtypes[name], scaled=name == "fp16")


def layer_groups(network: nn.Module) -> Groups:
    """Returns the layer groups of a network, the classifier alone on top.

    A network without timm's `group_matcher` has one group for each module that owns parameters.
    """
    matcher: Any = getattr(network, "group_matcher", None)
    if matcher is None:
        owned = (
            tuple(
                f"{path}.{name}" if path else name for name, _ in module.named_parameters("", False)
            )
            for path, module in network.named_modules()
        )
        groups = [names for names in owned if names]
    else:
        found = timm().models.group_parameters(network, matcher(coarse=False))
        groups = [tuple(names) for _, names in sorted(found.items())]
    top = _classifier_parameters(network)
    below = (tuple(name for name in names if name not in top) for names in groups)
    return (*(names for names in below if names), *((top,) if top else ()))


def freeze(
    network: nn.Module, trained_groups: int | None, *, freeze_batch_norm: bool = False
) -> tuple[nn.Module, ...]:
    """Lets only the topmost layer groups learn.

    Args:
        network: its frozen parameters no longer require gradients.
        trained_groups: how many groups learn, the classifier counted as one; None for all.
        freeze_batch_norm: batch norms of the learning part keep their statistics as well; their
            scale and shift go on learning.

    Returns:
        The modules to be kept in evaluation mode, see `set_training`.

    Raises:
        ConfigInvalid: there are not so many groups, or nothing is left to learn.
    """
    groups = layer_groups(network)
    if trained_groups is not None and trained_groups > len(groups):
        raise ConfigInvalid(
            f"loop.trained_groups = {trained_groups}, but the network has {len(groups)} layer "
            "groups; leave it out to train all of them"
        )
    bottom = groups[: len(groups) - trained_groups] if trained_groups is not None else ()
    frozen = {name for names in bottom for name in names}
    for name, parameter in network.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigInvalid("no parameter of the network is left to learn")
    still = [*_wholly_frozen(network)] if frozen else []
    if freeze_batch_norm:
        still += [module for module in network.modules() if isinstance(module, _BatchNorm)]
    return tuple(still)


def set_training(network: nn.Module, still: tuple[nn.Module, ...]) -> None:
    """Puts a network into training mode, but for the modules `freeze` returned."""
    network.train()
    for module in still:
        module.eval()


def make_optimizer(network: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """Makes one of timm's optimizers for the parameters that learn.

    Biases and the scales of norms do not decay (every parameter of one dimension), nor what the
    architecture itself excludes.

    Raises:
        ConfigInvalid: timm has no such optimizer, it cannot be used here, or layer decay is asked of
            a network whose layers timm cannot group.
    """
    known = timm().optim.list_optimizers()
    if config.name not in known:
        hint = did_you_mean(config.name, known) or "; timm.optim.list_optimizers has all"
        raise ConfigInvalid(f"optimizer.name: timm has no optimizer {config.name!r}{hint}")
    if config.layer_decay is not None and not _has_layers(network):
        raise ConfigInvalid(
            "optimizer.layer_decay: timm cannot group the layers of this architecture; leave it out"
        )
    try:
        optimizer: torch.optim.Optimizer = timm().optim.create_optimizer_v2(
            network,
            opt=config.name,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            layer_decay=config.layer_decay,
        )
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigInvalid(f"optimizer.name: {config.name} cannot be made: {error}") from error
    if getattr(optimizer, "is_second_order", False):
        raise ConfigInvalid(f"optimizer.name: {config.name} needs second derivatives; take another")
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, config: Schedule, epoch_steps: int) -> Any:
    """Makes one of timm's schedules; its learning rates are a pure function of the step.

    Args:
        optimizer: its learning rates are the peak.
        config: name, epochs, warm-up and final fraction.
        epoch_steps: optimizer steps of one epoch.

    Returns:
        An object whose `step_update(step)` sets the learning rates of a step, counted from 0. The
        warm-up rises in a line from peak / warm-up steps; the first step already learns.

    Raises:
        ConfigInvalid: the warm-up is as long as the whole run.
    """
    total = config.epochs * epoch_steps
    warmup = round(config.warmup_epochs * epoch_steps)
    if warmup and warmup >= total:
        raise ConfigInvalid(
            f"schedule.warmup_epochs = {config.warmup_epochs:g} leaves nothing of "
            f"{config.epochs} epochs"
        )
    peak = max(group["lr"] for group in optimizer.param_groups)
    shared = {
        "warmup_t": warmup,
        "warmup_lr_init": peak / warmup if warmup else 0.0,
        "t_in_epochs": False,
    }
    schedulers = timm().scheduler
    if config.name == "constant":
        # A step schedule whose steps change nothing: timm has no other constant one.
        return schedulers.StepLRScheduler(optimizer, decay_t=total, decay_rate=1.0, **shared)
    # At least 2, for timm warns of a cosine of one step.
    return schedulers.CosineLRScheduler(
        optimizer, t_initial=max(total, 2), lr_min=config.final_fraction * peak, **shared
    )


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    """Returns the highest learning rate of any group: the head's, where layers decay."""
    return max(float(group["lr"]) for group in optimizer.param_groups)


def make_average(network: nn.Module, decay: float | None) -> Any:
    """Returns timm's moving average of parameters and buffers, or None without a decay.

    Its `update(network, n + 1)` belongs after step n, counted from 1; see `_EMA_GAMMA`.
    """
    if decay is None:
        return None
    return timm().utils.ModelEmaV3(
        network, decay=decay, use_warmup=True, warmup_gamma=_EMA_GAMMA, warmup_power=_EMA_POWER
    )


def second_stage(config: RunConfig) -> tuple[Optimizer, Schedule]:
    """Returns the sections of a config that train the network itself.

    Raises:
        ConfigInvalid: it has none.
    """
    if config.optimizer is None or config.schedule is None:
        raise ConfigInvalid("the config has no [optimizer] and [schedule]: it trains a head only")
    return config.optimizer, config.schedule


def _classifier_parameters(network: nn.Module) -> tuple[str, ...]:
    wanted = {id(value) for head in classifiers(network) for value in head.parameters()}
    return tuple(name for name, value in network.named_parameters() if id(value) in wanted)


def _wholly_frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the outermost modules that own parameters, none of which learns.

    Dropout and batch norms inside of them rest with them.
    """
    for child in module.children():
        learns = [parameter.requires_grad for parameter in child.parameters()]
        if learns and not any(learns):
            yield child
        else:
            yield from _wholly_frozen(child)


def _has_layers(network: nn.Module) -> bool:
    facts: Any = getattr(network, "pretrained_cfg", None) or {}
    return hasattr(network, "group_matcher") or bool(facts.get("classifier"))


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return supported
    find: Any = getattr(torch.cpu, "get_capabilities", dict)
    found = find()
    return any(bool(found.get(name, False)) for name in _CPU_BF16)

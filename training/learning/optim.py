"""Trainable parameters, optimizer, schedule, moving average and precision.

Layer groups are timm's (`group_matcher`), from the input up; the classifier is always the last one.
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

# With these, timm's decay is min(decay, (1 + n) / (10 + n)) after n updates, as in TensorFlow's
# ExponentialMovingAverage. Without the warm-up a short run would end near its random start.
_EMA_GAMMA: Final = 9.0
_EMA_POWER: Final = 1.0

_CPU_BF16: Final = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True, slots=True)
class Precision:
    """The precision of forward passes."""

    dtype: torch.dtype | None = None  # of autocast; None computes in float32
    scaled: bool = False  # scale the loss up, because float16 gradients would underflow

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.dtype)


def decide_precision(name: str, device: torch.device) -> Precision:
    """Returns the precision for a config's `auto`, `fp32`, `bf16` or `fp16`.

    `auto` is bf16 if the processor has instructions for it, otherwise fp32.

    Raises:
        ConfigInvalid: fp16 on a CPU.
    """
    if name == "auto":
        name = "bf16" if _computes_bf16(device) else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise ConfigInvalid(
            'loop.precision: "fp16" needs a CUDA device; on a CPU use "bf16", "fp32" or "auto"'
        )
    dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    return Precision(dtypes[name], scaled=name == "fp16")


def layer_groups(network: nn.Module) -> Groups:
    # Without timm's `group_matcher`, each module that owns parameters is a group.
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
    """Freezes all but the last layer groups.

    Args:
        network: its frozen parameters no longer require gradients.
        trained_groups: number of groups to train, including the classifier; None trains all.
        freeze_batch_norm: batch norms keep their statistics; their scale and shift are still
            trained.

    Returns:
        The modules that `set_training` keeps in evaluation mode.

    Raises:
        ConfigInvalid: the network has fewer groups, or nothing is left to train.
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
        raise ConfigInvalid("no parameter of the network is left to train")

    still = [*_wholly_frozen(network)] if frozen else []
    if freeze_batch_norm:
        still += [module for module in network.modules() if isinstance(module, _BatchNorm)]
    return tuple(still)


def set_training(network: nn.Module, still: tuple[nn.Module, ...]) -> None:
    network.train()
    for module in still:
        module.eval()


def make_optimizer(network: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """Creates one of timm's optimizers for the parameters that are trained.

    Weight decay leaves out one-dimensional parameters (biases, scales of norms) and whatever the
    architecture excludes.

    Raises:
        ConfigInvalid: timm has no such optimizer, it cannot be used here, or timm cannot group the
            network's layers for layer decay.
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
        raise ConfigInvalid(f"optimizer.name: {config.name} cannot be created: {error}") from error
    if getattr(optimizer, "is_second_order", False):
        raise ConfigInvalid(f"optimizer.name: {config.name} needs second derivatives; use another")
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, config: Schedule, epoch_steps: int) -> Any:
    """Creates one of timm's schedules, whose learning rates depend on the step alone.

    `step_update(step)` sets the rates of a step, counted from 0. The optimizer's rates are the peak.
    The warm-up is linear and starts at peak / warm-up steps, so that the first step has an effect.

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
        # timm has no constant schedule. This one multiplies by 1.
        return schedulers.StepLRScheduler(optimizer, decay_t=total, decay_rate=1.0, **shared)
    # timm warns about a cosine of one step.
    return schedulers.CosineLRScheduler(
        optimizer, t_initial=max(total, 2), lr_min=config.final_fraction * peak, **shared
    )


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    # With layer decay, the head has the highest.
    return max(float(group["lr"]) for group in optimizer.param_groups)


def make_average(network: nn.Module, decay: float | None) -> Any:
    """Returns timm's moving average of parameters and buffers, or None without a decay.

    Call `update(network, n + 1)` after step n, counted from 1.
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
    # The outermost modules without trained parameters. Their dropouts and batch norms rest with them.
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

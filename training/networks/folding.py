"""Folds batch norms into the convolutions before them.

With fixed statistics a batch norm is a multiplication and an addition per channel, which the
convolution before it can do (Jacob et al. 2018, arXiv:1712.05877, section 3.2). The network is then
trained without batch norms: a picture's result does not depend on its batch, several processes
compute what one does, and a step is about a fifth faster.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from training.errors import ArchitectureRefused

# Of a logit, relative to the largest one. Reordered float32 sums differ by about 1e-6.
_TOLERANCE: Final = 1e-3


def fold_batch_norms(network: nn.Module, size_px: int) -> int:
    """Folds every batch norm that directly follows a convolution, in place; returns their number.

    Raises:
        ArchitectureRefused: the network gives other logits afterwards.
    """
    network.eval()
    example = torch.rand(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        pairs, before = _pairs(network, 2 * example - 1)

    names = {module: name for name, module in network.named_modules()}
    for convolution, norm in pairs:
        joined = fuse_conv_bn_eval(
            convolution, norm
        ).requires_grad_()  # the new bias would not learn
        _replace(network, names[convolution], joined)
        _replace(network, names[norm], _activation_of(norm))

    with torch.inference_mode():
        after: Tensor = network(2 * example - 1)
    worst = float((after - before).abs().max() / before.abs().max().clamp(min=1e-6))
    if not worst <= _TOLERANCE:
        raise ArchitectureRefused(
            f"with its batch norms folded the network answers differently (by {worst:.1g}); set "
            "network.fold_batch_norm = false"
        )
    return len(pairs)


def _pairs(network: nn.Module, example: Tensor) -> tuple[list[tuple[nn.Conv2d, Any]], Tensor]:
    # Runs the network once and finds the norms whose input is the output tensor of a convolution.
    given: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # keeps the tensors, so that ids stay unique
    pairs = []

    def note_output(module: nn.Module, _: Any, output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            given[id(output)] = (output, module)

    def note_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in given:
            pairs.append((given[id(inputs[0])][1], module))

    hooks = []
    for module in network.modules():
        hooks += [
            module.register_forward_hook(note_output),
            module.register_forward_pre_hook(note_input),
        ]
    try:
        answer: Tensor = network(example)
    finally:
        for hook in hooks:
            hook.remove()

    # A layer that is used several times cannot be folded.
    uses = Counter(module for pair in pairs for module in pair)
    return [pair for pair in pairs if uses[pair[0]] == uses[pair[1]] == 1], answer


def _activation_of(norm: Any) -> nn.Module:
    # timm's norms include dropout and activation.
    parts = [getattr(norm, name) for name in ("drop", "act") if hasattr(norm, name)]
    kept = [part for part in parts if not isinstance(part, nn.Identity)]
    return kept[0] if len(kept) == 1 else nn.Sequential(*kept) if kept else nn.Identity()


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)

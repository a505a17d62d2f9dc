"""Networks by name, and the wrapper that makes a graph eat pixels and answer probabilities.

Shapes: N pictures, S = crop size in pixels, C classes, D = length of the embedding.
"""

from __future__ import annotations

import copy
import difflib
from typing import Any, Final

import torch
from torch import Tensor, nn

from contract.manifest import Preprocessing
from contract.preprocessing import INTERPOLATIONS, resize_size_for
from training.errors import ArchitectureRefused
from training.torch_compat import timm, timm_data

OUTPUTS: Final = ("probabilities", "logits", "embedding")
"""Outputs of every exported graph, in order; each name is also its kind."""

# timm's crop modes and what the contract calls them; "border" pads and is not reproduced.
_RESIZE_MODES: Final = {"center": "shortest_side", "squash": "squash"}


def create(
    architecture: str, n_classes: int | None = None, *, weights_from_hub: bool = False
) -> nn.Module:
    """Builds a timm network in evaluation mode.

    Args:
        architecture: timm's name, with an optional tag after a dot.
        n_classes: C; the architecture's own number if not given.
        weights_from_hub: download the pretrained weights; otherwise they are random.

    Raises:
        ArchitectureRefused: timm has no such architecture, or the hub no weights for it.
    """
    if not timm().is_model(architecture.split(".")[0]):
        raise ArchitectureRefused(_unknown(architecture, timm().list_models()))
    options = {} if n_classes is None else {"num_classes": n_classes}
    try:
        network: nn.Module = timm().create_model(
            architecture, pretrained=weights_from_hub, **options
        )
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ArchitectureRefused(f"timm cannot make {architecture}: {reason}") from error
    return network.eval()


def evaluation_transform(network: nn.Module) -> Any:
    """Returns timm's own evaluation transform of a network: PIL image -> float32 (3, S, S)."""
    data = timm_data()
    return data.create_transform(**data.resolve_data_config({}, model=network), is_training=False)


def preprocessing_of(network: nn.Module) -> Preprocessing:
    """Returns a network's evaluation preprocessing as the manifest states it, done in the graph.

    Raises:
        ArchitectureRefused: the crop mode, size or interpolation has no equal in the contract.
    """
    config = timm_data().resolve_data_config({}, model=network)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise ArchitectureRefused(f"the input is {channels} x {height} x {width}, not a RGB square")
    if config["crop_mode"] not in _RESIZE_MODES:
        raise ArchitectureRefused(f"crop mode {config['crop_mode']!r} is not supported")
    if config["interpolation"] not in INTERPOLATIONS:
        raise ArchitectureRefused(f"interpolation {config['interpolation']!r} is not supported")
    return Preprocessing.model_validate(
        {
            "resize_mode": _RESIZE_MODES[config["crop_mode"]],
            "resize_size_px": resize_size_for(height, config["crop_pct"]),
            "crop_size_px": height,
            "interpolation": config["interpolation"],
            "mean": config["mean"],
            "std": config["std"],
            "in_graph": True,
        }
    )


class PixelsToProbabilities(nn.Module):
    """A network with its normalisation in front and softmax behind.

    Args:
        network: a timm network: float32 (N, 3, S, S), normalised, to logits (N, C). It is copied.
        mean: three channels, for values scaled to 0..1.
        std: likewise.
        temperature: > 0; logits are divided by it before the softmax.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = _with_plain_pooling(network)
        self.temperature = temperature
        deviation = torch.tensor(std, dtype=torch.float64)
        shift = -torch.tensor(mean, dtype=torch.float64) / deviation
        # One multiply and one add a value: (x / 255 - mean) / std = x * scale + shift.
        self.register_buffer("scale", (1 / (255 * deviation)).float().view(1, 3, 1, 1))
        self.register_buffer("shift", shift.float().view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Answers a batch of pictures.

        Args:
            image: uint8, shape (N, S, S, 3), RGB, 0..255.

        Returns:
            Probabilities (N, C), logits (N, C) and embedding (N, D), all float32.
        """
        network: Any = self.network
        pixels = image.permute(0, 3, 1, 2).to(torch.float32)  # (N, 3, S, S)
        features = network.forward_features(pixels * self.scale + self.shift)
        embedding = network.forward_head(features, pre_logits=True)  # (N, D)
        logits = network.get_classifier()(embedding)  # (N, C)
        return torch.softmax(logits / self.temperature, dim=-1), logits, embedding


class _MeanPool(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.mean((2, 3), keepdim=True)


def _with_plain_pooling(network: nn.Module) -> nn.Module:
    """Copies a network with `AdaptiveAvgPool2d(1)` written as a mean.

    The exporter turns the former into a chain of shape arithmetic and a Gather; the latter becomes
    one ReduceMean.
    """
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, _MeanPool())
    return network


def _unknown(architecture: str, known: list[str]) -> str:
    near = difflib.get_close_matches(architecture, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"timm has no architecture {architecture!r}{hint}"

"""The classic convolutional neural network, as textbooks draw it.

picture -> [convolution -> ReLU -> max pooling] x blocks -> flattening -> full connection -> logits;
the exported graph adds the softmax. Each function below builds one of these steps. The network has
the methods of timm's networks, so the rest of the package needs no special case for it.

Shapes: N pictures, S = side of the input in pixels, K feature maps, D = length of the embedding,
C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

DEFAULT_SIZE_PX: Final = 32
SMALLEST_SIZE_PX: Final = 8

# Brightness as people see it, of red, green and blue: ITU-R BT.601, as in Pillow's mode "L".
_LUMA: Final = (0.299, 0.587, 0.114)
_WIDTHS: Final = (32, 64, 128, 256, 256, 512, 512)
_LARGEST_FEATURE_MAP_PX: Final = 8


@dataclass(frozen=True, slots=True)
class ConvNetOptions:
    """The options of the network: the keys of `[network.options]` in a config.

    Attributes:
        grey: use the brightness only; the input is still RGB.
        widths: number of feature maps of each block. If None, there are at least two blocks, and
            enough to reduce the feature maps to 8 pixels.
        convolutions: per block, each with its ReLU, before the pooling.
        hidden: units of each full connection before the last.
        drop_rate: dropout after each hidden full connection, 0 <= rate < 1.
        batch_norm: normalise every feature map over the batch, before the ReLU.
    """

    grey: bool = False
    widths: tuple[int, ...] | None = None
    convolutions: int = 1
    hidden: tuple[int, ...] = (128,)
    drop_rate: float = 0.0
    batch_norm: bool = False

    def __post_init__(self) -> None:
        if self.widths is not None and (not self.widths or min(self.widths) < 1):
            raise ValueError("widths: one number of feature maps, 1 or more, for each block")
        if self.convolutions < 1:
            raise ValueError("convolutions: 1 or more in each block")
        if self.hidden and min(self.hidden) < 1:
            raise ValueError("hidden: a full connection has 1 unit or more")
        if not 0 <= self.drop_rate < 1:
            raise ValueError("drop_rate: 0 or more and below 1")


def convolution(n_in: int, n_out: int, *, padding: int = 1, bias: bool = True) -> nn.Conv2d:
    """Slides `n_out` feature detectors of 3 x 3 pixels over a picture, one pixel at a time.

    With a padding of 1, (N, n_in, S, S) -> (N, n_out, S, S); with 0, (N, n_out, S - 2, S - 2).
    """
    return nn.Conv2d(n_in, n_out, kernel_size=3, stride=1, padding=padding, bias=bias)


def max_pooling() -> nn.MaxPool2d:
    """Keeps the largest value of each 2 x 2 box: (N, K, S, S) -> (N, K, ceil(S / 2), ceil(S / 2))."""
    return nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)


def block(n_in: int, n_out: int, design: ConvNetOptions) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(design.convolutions):
        # A batch norm has a bias of its own.
        layers.append(convolution(n_in if i == 0 else n_out, n_out, bias=not design.batch_norm))
        if design.batch_norm:
            layers.append(nn.BatchNorm2d(n_out))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, max_pooling())


def full_connection(n_in: int, n_out: int, drop_rate: float) -> nn.Sequential:
    """Connects every value with every unit: (N, n_in) -> (N, n_out), all >= 0."""
    return nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(drop_rate))


def default_widths(input_size_px: int) -> tuple[int, ...]:
    halvings = math.ceil(math.log2(max(input_size_px / _LARGEST_FEATURE_MAP_PX, 1)))
    return _WIDTHS[: min(max(halvings, 2), len(_WIDTHS))]


class Grey(nn.Module):
    """Brightness of colour pictures: (N, 3, S, S) -> (N, 1, S, S)."""

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(_LUMA).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.weights).sum(dim=1, keepdim=True)


class ConvNet(nn.Module):
    """The classic network: float32 (N, 3, S, S), values around -1..1, to logits (N, C).

    Raises:
        ValueError: `input_size_px` is below 8.
    """

    def __init__(self, n_classes: int, input_size_px: int, design: ConvNetOptions) -> None:
        super().__init__()
        if input_size_px < SMALLEST_SIZE_PX:
            raise ValueError(
                f"the input has {SMALLEST_SIZE_PX} x {SMALLEST_SIZE_PX} pixels or more"
            )

        widths = design.widths or default_widths(input_size_px)
        n_in, side = (1 if design.grey else 3), input_size_px
        self.pretrained_cfg = _evaluation_data(n_classes, input_size_px)
        self.grey = Grey() if design.grey else nn.Identity()
        self.blocks = nn.Sequential()
        for n_out in widths:
            self.blocks.append(block(n_in, n_out, design))
            n_in, side = n_out, math.ceil(side / 2)

        self.flatten = nn.Flatten()
        n_values = n_in * side * side
        self.full = nn.Sequential()
        for n_units in design.hidden:
            self.full.append(full_connection(n_values, n_units, design.drop_rate))
            n_values = n_units
        self.num_features = n_values
        self.classifier = nn.Linear(n_values, n_classes)
        self._start_randomly()

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))  # (N, C)

    def forward_features(self, images: Tensor) -> Tensor:
        feature_maps: Tensor = self.blocks(self.grey(images))  # (N, K, s, s)
        return feature_maps

    def forward_head(self, feature_maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature maps (N, K, s, s) to logits (N, C), or with `pre_logits` to the embedding (N, D)."""
        embedding = self.full(self.flatten(feature_maps))  # (N, D)
        answer: Tensor = embedding if pre_logits else self.classifier(embedding)
        return answer

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        # timm's signature. The new classifier has random weights.
        if global_pool is not None:
            raise ValueError("the classic network flattens its feature maps and pools nothing")
        self.classifier = nn.Linear(self.num_features, num_classes)
        self.pretrained_cfg = {**self.pretrained_cfg, "num_classes": num_classes}

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:  # noqa: ARG002 - timm's signature
        # One group per block and one for the full connections. The classifier matches nothing and is
        # the last group.
        return {"blocks": r"^blocks\.(\d+)", "full": r"^full"}

    def _start_randomly(self) -> None:
        # He et al. 2015 (arXiv:1502.01852): signals keep their size through ReLU layers.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _evaluation_data(n_classes: int, input_size_px: int) -> dict[str, Any]:
    # As timm's `pretrained_cfg`; the preprocessing follows from it.
    return {
        "input_size": (3, input_size_px, input_size_px),
        "num_classes": n_classes,
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "crop_pct": 1.0,
        "crop_mode": "center",
        "first_conv": "blocks.0.0",
        "classifier": "classifier",
    }

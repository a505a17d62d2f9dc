"""A network that tells red, green and blue apart and exports in a second."""

from __future__ import annotations

import io

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from PIL import Image
from torch import nn

from contract.manifest import Label, Preprocessing
from training.export.describe import describe_export
from training.export.draft import Draft
from training.export.export import export
from training.networks.architectures import PixelsToProbabilities
from training.system.torch_compat import timm

SIDE_PX = 32
MEAN = (0.5, 0.4, 0.3)
STD = (0.5, 0.25, 0.2)
NAMES = ("red", "green", "blue")
COLOURS = {"red": (230, 20, 30), "green": (25, 220, 40), "blue": (10, 30, 240)}
ARCHITECTURE = "convserve_tiny"


class TinyNet(nn.Module):
    """Convolution, ReLU, pooling and a linear layer, with timm's interface."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.pretrained_cfg = {
            "input_size": (3, SIDE_PX, SIDE_PX),
            "interpolation": "bicubic",
            "mean": MEAN,
            "std": STD,
            "crop_pct": 0.875,
            "crop_mode": "center",
        }

        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=True)
        self.act = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(6, num_classes)

        # Each colour has its own channel and its own class.
        with torch.no_grad():
            self.conv.weight.copy_(0.01 * torch.randn(self.conv.weight.shape, generator=generator))
            for channel in range(3):
                self.conv.weight[channel, channel] += 0.1
            self.conv.bias[:] = 1.0  # type: ignore[index] # it has one
            self.classifier.weight.fill_(0.01)
            self.classifier.weight[:3, :3] += 2.0 * torch.eye(num_classes)[:3, :3]
            self.classifier.bias.zero_()

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.act(self.conv(x))
        return features

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        pooled: torch.Tensor = self.pool(x).flatten(1)
        logits: torch.Tensor = self.classifier(pooled)
        return pooled if pre_logits else logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def register() -> None:
    """Registers TinyNet with timm as ARCHITECTURE."""
    if timm().is_model(ARCHITECTURE):
        return

    def convserve_tiny(num_classes: int = 3, **_: object) -> nn.Module:
        return TinyNet(num_classes)

    timm().models.register_model(convserve_tiny)


def spec() -> Preprocessing:
    return Preprocessing(
        resize_size_px=36,
        crop_size_px=SIDE_PX,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        in_graph=True,
    )


def labels() -> tuple[Label, ...]:
    return tuple(Label(index=index, name=name) for index, name in enumerate(NAMES))


def wrapped(network: nn.Module | None = None, temperature: float = 1.0) -> PixelsToProbabilities:
    return PixelsToProbabilities(network or TinyNet().eval(), MEAN, STD, temperature).eval()


def exported() -> bytes:
    return export(wrapped(), SIDE_PX)


def draft(graph: bytes) -> Draft:
    return Draft(
        name="tiny",
        version=1,
        architecture=ARCHITECTURE,
        model=graph,
        graph=describe_export(graph),
        preprocessing=spec(),
        labels=labels(),
        license="CC0-1.0",
        weights_source="test",
    )


def picture(
    colour: str, seed: int = 0, size: tuple[int, int] = (60, 44), file_format: str = "PNG"
) -> bytes:
    """Returns an image file of one of NAMES, with noise."""
    noise = np.random.default_rng(seed).integers(-20, 21, (size[1], size[0], 3))
    pixels = np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


def negated(graph: bytes) -> bytes:
    """Returns the graph with its classifier's weights negated, so that its answers are wrong."""
    model = onnx.load_model_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("classifier.weight"):
            values = -numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    data: bytes = model.SerializeToString()
    return data

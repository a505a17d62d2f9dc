"""Complete but small training runs: pictures of three colours, a small network, few steps."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from contract.manifest import Preprocessing
from tests.training.helpers import tinynet
from training.config.config import RunConfig
from training.data.samples import DataSet, Sample
from training.learning.run import TrainingRun
from training.system.distributed import World

SIDE_PX = 16
WORLD = World(device=torch.device("cpu"))


class SmallNet(nn.Module):
    """Convolution, batch norm, ReLU, pooling, dropout and a linear layer, with timm's interface."""

    def __init__(self, *, norm: bool = True, dropout: float = 0.2) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(0.2 * torch.randn(value.shape, generator=generator))

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.norm(self.conv(images))).mean((2, 3))  # (B, 8)
        logits: torch.Tensor = self.classifier(self.dropout(features))
        return logits


def spec() -> Preprocessing:
    return Preprocessing(
        resize_size_px=SIDE_PX,
        crop_size_px=SIDE_PX,
        interpolation="bilinear",
        mean=tinynet.MEAN,
        std=tinynet.STD,
        in_graph=True,
    )


@functools.cache
def samples(split: str, n: int) -> tuple[Sample, ...]:
    """Returns pictures of the three colours in turn."""
    return tuple(
        Sample(
            f"{split}/{i}.png",
            i % 3,
            data=tinynet.picture(tinynet.NAMES[i % 3], _seed_of(split) + i, (20, 18)),
        )
        for i in range(n)
    )


def _seed_of(text: str) -> int:
    return sum(text.encode())


def data_set(n_train: int = 22, n_validation: int = 9) -> DataSet:
    return DataSet(
        "colours",
        tinynet.labels(),
        samples("train", n_train),
        samples("validation", n_validation),
        samples("test", 3),
    )


def config(**changes: Any) -> RunConfig:
    """Returns a config; "loop__batch_size=4" changes a key of a section."""
    values: dict[str, Any] = {
        "seed": 3,
        "network": {"architecture": "tests"},
        "augment": {"flip": 0.5, "erasing": 0.3},
        "optimizer": {"learning_rate": 0.01, "clip_norm": 5.0},
        "schedule": {"epochs": 2, "warmup_epochs": 0.5},
        "loop": {"batch_size": 6, "checkpoint_s": 1e9, "precision": "fp32"},
    }

    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        (values.setdefault(section, {}) if section else values)[name] = value

    return RunConfig.model_validate(values)


def run(folder: Path, network: nn.Module | None = None, **changes: Any) -> TrainingRun:
    """Returns a run of the small network on the CPU; see `config`."""
    return TrainingRun(network or SmallNet(), spec(), data_set(), config(**changes), folder, WORLD)

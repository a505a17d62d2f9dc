"""The first stage of a run: train only the head, on cached features of the frozen network.

The network sees every picture a few times, plain and augmented. The classifier is then trained on
these features, which takes seconds. The result is the start for fine-tuning, and often nearly as good.

Shapes: N pictures, V views, D = length of the embedding, C classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from contract.manifest import Preprocessing
from training.config.config import Head, RunConfig
from training.data.augment import Augmentation
from training.data.batches import EvaluationTransform, Transform
from training.data.prepared import PreparedPictures
from training.data.samples import DataSet
from training.errors import ArchitectureRefused, CheckpointRefused, ConfigInvalid, LossNotFinite
from training.learning.features import (
    FeatureExtraction,
    Features,
    cached_features,
    linear_classifier,
)
from training.learning.history import Metric, merit
from training.learning.learner import class_weights
from training.learning.optim import decide_precision
from training.learning.validation import ValidationScore, score_validation
from training.system.files import write_whole
from training.system.randomness import seed_of, torch_seeded

log = logging.getLogger(__name__)

_FACTS: Final = {
    "top1": float,
    "nll": float,
    "nll_calibrated": float,
    "temperature": float,
    "epoch": int,
}


@dataclass(frozen=True, slots=True, eq=False)
class HeadObjective:
    """The loss of a classifier, and the metric that picks the best epoch."""

    n_classes: int
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None  # float32 (C,); None weighs all classes equally
    best_by: Metric = "nll"  # the other metric breaks ties


@dataclass(frozen=True, slots=True, eq=False)
class FittedHead:
    """A linear classifier for the network's features, with its validation results."""

    weight: Tensor  # float32 (C, D)
    bias: Tensor  # float32 (C,)
    top1: float  # 0..1
    nll: float  # mean negative log-likelihood, natural logarithm
    nll_calibrated: float  # the same at the temperature that lowers it most
    temperature: float  # that temperature
    epoch: int  # the best one, from 0

    @property
    def score(self) -> ValidationScore:
        return ValidationScore(self.top1, self.nll, self.nll_calibrated, self.temperature)


def train_head(
    network: nn.Module,
    spec: Preprocessing,
    data: DataSet,
    config: RunConfig,
    prepared: PreparedPictures,
) -> FittedHead:
    """Trains the classifier on features of the plain pictures and of augmented views.

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
    extraction = FeatureExtraction(
        workers=config.data.workers,
        device=device,
        autocast=partial(decide_precision(config.loop.precision, device).autocast, device),
    )

    views: list[Transform] = [
        EvaluationTransform(spec),
        *[Augmentation(config.augment, spec)] * config.head.views,
    ]
    train = cached_features(network, data.train, views, seed=config.seed, extraction=extraction)
    if prepared.has_room(len(data.validation), spec):
        extraction = replace(extraction, workers=0)  # the cache is in this process
    validation = cached_features(
        network,
        data.validation,
        [EvaluationTransform(spec, prepared)],
        seed=config.seed,
        extraction=extraction,
    )

    objective = HeadObjective(
        data.n_classes,
        config.loop.label_smoothing,
        class_weights(data) if config.loop.class_weights else None,
        config.loop.best_by,
    )
    return fit_head(train, validation, config.head, objective, seed=config.seed)


def fit_head(
    train: Features,
    validation: Features,
    settings: Head,
    objective: HeadObjective,
    *,
    seed: int,
) -> FittedHead:
    """Fits a linear classifier with AdamW and returns the best epoch on validation.

    Each epoch shows every picture once, in a random view. The learning rate follows a cosine. The
    first view of `validation` counts. The result depends on the arguments alone.

    Raises:
        LossNotFinite: the fit diverged.
    """
    # Centred and scaled features let one learning rate suit all networks.
    scaling = _Scaling.of(train.values)
    with torch_seeded(0):  # keeps the global generator untouched; the weights start at zero
        head = nn.Linear(train.values.shape[2], objective.n_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)

    held_out = scaling.apply(validation.values[0])  # (N, D)
    best: FittedHead | None = None
    metric = objective.best_by
    for epoch in range(settings.epochs):
        generator = torch.Generator().manual_seed(seed_of("head", seed, epoch))
        for features, indexes in _epoch(train, settings.batch_size, generator):
            optimizer.zero_grad()
            loss: Any = _loss(head(scaling.apply(features)), indexes, objective)
            loss.backward()
            optimizer.step()
        schedule.step()

        with torch.inference_mode():
            logits = head(held_out).numpy()
        score = score_validation(logits, validation.indexes.numpy())
        if not math.isfinite(score.nll):
            raise LossNotFinite(f"the head diverged in epoch {epoch}; lower head.learning_rate")
        if best is None or _merit(score, metric) > _merit(best.score, metric):
            best = FittedHead(*scaling.undo(head), **asdict(score), epoch=epoch)
    if best is None:
        raise ValueError("at least one epoch is needed")
    return best


def install_head(network: nn.Module, head: FittedHead) -> None:
    """Copies a fitted classifier into its network.

    Raises:
        ArchitectureRefused: the network's classifier has another shape.
    """
    classifier = linear_classifier(network)
    if classifier.weight.shape != head.weight.shape or classifier.bias is None:
        raise ArchitectureRefused("the network's classifier has another shape than the fitted one")
    with torch.no_grad():
        classifier.weight.copy_(head.weight)
        classifier.bias.copy_(head.bias)


def write_head(path: Path, head: FittedHead) -> None:
    from safetensors.torch import save

    facts = {name: repr(value) for name, value in asdict(head).items() if name in _FACTS}
    write_whole(path, save({"weight": head.weight, "bias": head.bias}, metadata=facts))


def read_head(path: Path) -> FittedHead:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            weight, bias = file.get_tensor("weight"), file.get_tensor("bias")
        found = {name: kind(facts[name]) for name, kind in _FACTS.items()}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointRefused(f"{path} is damaged; delete it to fit the head again") from error
    return FittedHead(weight, bias, **found)


@dataclass(frozen=True, slots=True, eq=False)
class _Scaling:
    """Centres every feature and scales all of them by one number, to a mean deviation of 1.

    A scale for each feature would blow up those that hardly change. With frozen EfficientNet-Lite0
    features of 3,000 photographs that cost about a point of top-1.
    """

    mean: Tensor  # (D,)
    deviation: float

    @classmethod
    def of(cls, values: Tensor) -> _Scaling:
        rows = values.flatten(0, 1)  # (V * N, D)
        return cls(rows.mean(dim=0), float(rows.std(dim=0, correction=0).mean()) or 1.0)

    def apply(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / self.deviation

    def undo(self, head: nn.Linear) -> tuple[Tensor, Tensor]:
        """Returns weight and bias of the same classifier for unscaled features."""
        weight = head.weight.detach().double() / self.deviation
        bias = head.bias.detach().double() - weight @ self.mean.double()
        return weight.float(), bias.float()


def _epoch(
    train: Features, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    n_views, n, _ = train.values.shape
    views = torch.randint(n_views, (n,), generator=generator)
    for numbers in torch.split(torch.randperm(n, generator=generator), batch_size):
        yield train.values[views[numbers], numbers], train.indexes[numbers]


def _loss(logits: Tensor, indexes: Tensor, objective: HeadObjective) -> Tensor:
    return functional.cross_entropy(
        logits,
        indexes,
        weight=objective.class_weights,
        label_smoothing=objective.label_smoothing,
    )


def _merit(score: ValidationScore, metric: Metric) -> tuple[float, float]:
    return merit(score.top1, score.nll_calibrated, metric)

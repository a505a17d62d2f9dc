"""The first stage of fine-tuning: a new classifier on cached features of the frozen network.

The network sees every picture a few times, plain and augmented, and never again: the classifier is
then trained on what it saw, which takes seconds. What comes out is where training further layers
starts from, and often nearly as good as it gets.

Shapes: N pictures, V views, D = length of the embedding, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.config import config
from training.data.batches import Batches, Drawing, Prepare
from training.data.samples import Sample
from training.errors import ArchitectureRefused, DataRefused, LossNotFinite
from training.learning.history import Metric, merit
from training.networks.architectures import normalise
from training.system.randomness import seed_of, torch_seeded

_NOT_LINEAR: Final = (
    "the network's classifier is not one linear layer, so [head] cannot train it alone; "
    "leave [head] out"
)


@dataclass(frozen=True, slots=True)
class Extraction:
    """How the frozen network is run.

    Attributes:
        batch_size: pictures at once.
        workers: processes that decode; 0 decodes in this one.
        device: where the network is.
        autocast: makes the context of a forward pass.
        progress: takes how many pictures are done, over all views.
    """

    batch_size: int = 64
    workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    progress: Callable[[int], None] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What a frozen network sees in pictures.

    Attributes:
        values: float32, shape (V, N, D), on the CPU.
        indexes: int64, shape (N,), classes.
    """

    values: Tensor
    indexes: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """What a classifier is fitted for.

    Attributes:
        n_classes: C.
        label_smoothing: share of every target that is spread over all classes.
        class_weights: float32, shape (C,), of the loss; None weighs all alike.
        best_by: the validation metric that picks the epoch; the other one decides between equals.
    """

    n_classes: int
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    best_by: Metric = "top1"


@dataclass(frozen=True, slots=True, eq=False)
class FittedHead:
    """A classifier for features as the network gives them, and how good it is on validation.

    Attributes:
        weight: float32, shape (C, D).
        bias: float32, shape (C,).
        top1: share of the validation pictures, 0..1.
        nll: mean negative log-likelihood there, natural logarithm.
        epoch: the one it is of, 0 upwards.
    """

    weight: Tensor
    bias: Tensor
    top1: float
    nll: float
    epoch: int


def linear_classifier(network: nn.Module) -> nn.Linear:
    """Returns a network's classifier.

    Raises:
        ArchitectureRefused: it is not one linear layer.
    """
    classifier = getattr(network, "get_classifier", lambda: None)()
    if not isinstance(classifier, nn.Linear):
        raise ArchitectureRefused(_NOT_LINEAR)
    return classifier


def install_head(network: nn.Module, head: FittedHead) -> None:
    """Copies a fitted classifier into the network it was fitted for.

    Raises:
        ArchitectureRefused: the network has no such classifier.
    """
    classifier = linear_classifier(network)
    if classifier.weight.shape != head.weight.shape or classifier.bias is None:
        raise ArchitectureRefused("the network's classifier has another shape than the fitted one")
    with torch.no_grad():
        classifier.weight.copy_(head.weight)
        classifier.bias.copy_(head.bias)


def cached_features(
    network: nn.Module,
    samples: Sequence[Sample],
    views: Sequence[Prepare],
    *,
    seed: int,
    extraction: Extraction | None = None,
) -> Features:
    """Runs pictures through a network and keeps what its classifier is given.

    Memory: 4 * V * N * D bytes, such as 16 MB a view for 3,000 pictures and 1,280 features, and as
    much again for a moment.

    Args:
        network: with timm's methods; it runs in evaluation mode and is left as it was.
        samples: N pictures. One that broke since it was checked is left out of all views.
        views: how each view is made: `Plain(spec)`, or an `Augmentation` as often as wanted.
        seed: the run's; a view of a picture is a pure function of it and of their positions.
        extraction: how to run it.

    Raises:
        ArchitectureRefused: the classifier is not one linear layer on one row a picture.
        DataRefused: none of the pictures can be read.
    """
    n_features = linear_classifier(network).in_features
    extraction = extraction or Extraction()
    values = torch.empty(len(views), len(samples), n_features)  # (V, N, D)
    seen = torch.zeros(len(views), len(samples), dtype=torch.bool)
    was_training = network.training
    network.eval()
    try:
        for view, prepare in enumerate(views):
            for numbers, rows in _one_view(network, samples, prepare, (seed, view), extraction):
                values[view, numbers] = rows
                seen[view, numbers] = True
                if extraction.progress is not None:
                    extraction.progress(int(seen.sum()))
    finally:
        network.train(was_training)
    kept = seen.all(dim=0)
    if not kept.any():
        raise DataRefused("none of the pictures can be read")
    indexes = torch.tensor([sample.index for sample in samples])
    return Features(values[:, kept], indexes[kept])


def fit_head(
    train: Features,
    validation: Features,
    settings: config.Head,
    objective: Objective,
    *,
    seed: int,
) -> FittedHead:
    """Fits a linear classifier with AdamW and keeps the epoch that is best on validation.

    Each epoch shows every picture once, in a view drawn anew. The features are centred and scaled
    for the fit, so that one learning rate suits all networks; what is returned takes them as they
    are.

    Args:
        train: all views of the training pictures.
        validation: its first view counts.
        settings: epochs, batch size, learning rate (the peak of a cosine) and weight decay.
        objective: the loss, and what is best.
        seed: the run's; the result is a pure function of all arguments.

    Raises:
        LossNotFinite: the fit diverged.
    """
    scaling = _Scaling.of(train.values)
    with torch_seeded(0):  # leaves the global generator alone; the start is zero anyway
        head = nn.Linear(train.values.shape[2], objective.n_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    unseen = scaling.apply(validation.values[0])  # (N, D)
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
            top1, nll = _judge(head(unseen), validation.indexes)
        if not math.isfinite(nll):
            raise LossNotFinite(f"the head diverged in epoch {epoch}; lower head.learning_rate")
        better = best is None or merit(top1, nll, metric) > merit(best.top1, best.nll, metric)
        if better:
            best = FittedHead(*scaling.undo(head), top1, nll, epoch)
    if best is None:
        raise ValueError("there must be an epoch or more")
    return best


@dataclass(frozen=True, slots=True, eq=False)
class _Scaling:
    """Centres every feature and brings all of them to a deviation of 1 on average.

    A scale for each feature would blow up those that hardly ever change; on frozen
    EfficientNet-Lite0 features of 3,000 photographs that cost about a point of top-1.
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
        """Returns weight and bias of the same classifier for features that are not scaled."""
        weight = head.weight.detach().double() / self.deviation
        bias = head.bias.detach().double() - weight @ self.mean.double()
        return weight.float(), bias.float()


@contextmanager
def _inputs_of(classifier: nn.Linear) -> Iterator[list[Tensor]]:
    """Collects what a classifier is given; that need not be the embedding timm's methods return."""
    caught: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        caught.append(inputs[0])

    handle = classifier.register_forward_pre_hook(note)
    try:
        yield caught
    finally:
        handle.remove()


def _one_view(
    network: nn.Module,
    samples: Sequence[Sample],
    prepare: Prepare,
    seed_and_view: tuple[int, int],
    extraction: Extraction,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (positions in the samples, their features)."""
    seed, view = seed_and_view
    batches = Batches(
        samples,
        prepare,
        batch_size=extraction.batch_size,
        drawing=Drawing(seed_of("view", seed), shuffled=False),
        workers=extraction.workers,
    )
    try:
        with _inputs_of(linear_classifier(network)) as caught:
            for batch in batches.epoch(view):
                with torch.inference_mode(), extraction.autocast():
                    network(normalise(batch.images.to(extraction.device), prepare.spec))
                rows = caught.pop()  # (B, D)
                if caught or rows.shape != (len(batch.images), rows.shape[-1]):
                    raise ArchitectureRefused(_NOT_LINEAR)
                yield batch.numbers, rows.float().cpu()
    finally:
        batches.close()


def _epoch(
    train: Features, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    n_views, n, _ = train.values.shape
    views = torch.randint(n_views, (n,), generator=generator)
    for numbers in torch.split(torch.randperm(n, generator=generator), batch_size):
        yield train.values[views[numbers], numbers], train.indexes[numbers]


def _loss(logits: Tensor, indexes: Tensor, objective: Objective) -> Tensor:
    return functional.cross_entropy(
        logits,
        indexes,
        weight=objective.class_weights,
        label_smoothing=objective.label_smoothing,
    )


def _judge(logits: Tensor, indexes: Tensor) -> tuple[float, float]:
    hits = (logits.argmax(dim=1) == indexes).float().mean()
    return float(hits), float(functional.cross_entropy(logits, indexes))

"""What a frozen network sees in pictures, a few views of each: the features that its head takes.

Shapes: N pictures, V views, D = length of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from training.data.batches import Batches, Sampling, Transform
from training.data.samples import Sample
from training.errors import ArchitectureRefused, DataRefused
from training.networks.architectures import normalise
from training.system.randomness import seed_of

_NOT_LINEAR: Final = (
    "the network's classifier is not one linear layer, so [head] cannot train it alone; "
    "leave [head] out"
)


@dataclass(frozen=True, slots=True)
class FeatureExtraction:
    """How the frozen network is run.

    Attributes:
        batch_size: pictures at once.
        workers: processes that decode; 0 decodes in this one.
        device: where the network is.
        autocast: makes the context of a forward pass.
    """

    batch_size: int = 64
    workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What a frozen network sees in pictures.

    Attributes:
        values: float32, shape (V, N, D), on the CPU.
        indexes: int64, shape (N,), classes.
    """

    values: Tensor
    indexes: Tensor


def linear_classifier(network: nn.Module) -> nn.Linear:
    """Returns a network's classifier.

    Raises:
        ArchitectureRefused: it is not one linear layer.
    """
    classifier = getattr(network, "get_classifier", lambda: None)()
    if not isinstance(classifier, nn.Linear):
        raise ArchitectureRefused(_NOT_LINEAR)
    return classifier


def cached_features(
    network: nn.Module,
    samples: Sequence[Sample],
    views: Sequence[Transform],
    *,
    seed: int,
    extraction: FeatureExtraction | None = None,
) -> Features:
    """Runs pictures through a network and keeps what its classifier is given.

    Memory: 4 * V * N * D bytes, such as 16 MB a view for 3,000 pictures and 1,280 features, and as
    much again for a moment.

    Args:
        network: with timm's methods; it runs in evaluation mode and is left as it was.
        samples: N pictures. One that broke since it was checked is left out of all views.
        views: how each view is made: `EvaluationTransform(spec)`, or an `Augmentation` as often as wanted.
        seed: the run's; a view of a picture is a pure function of it and of their positions.
        extraction: how to run it.

    Raises:
        ArchitectureRefused: the classifier is not one linear layer on one row a picture.
        DataRefused: none of the pictures can be read.
    """
    n_features = linear_classifier(network).in_features
    extraction = extraction or FeatureExtraction()
    values = torch.empty(len(views), len(samples), n_features)  # (V, N, D)
    seen = torch.zeros(len(views), len(samples), dtype=torch.bool)
    was_training = network.training
    network.eval()
    try:
        for view, prepare in enumerate(views):
            for numbers, rows in _one_view(network, samples, prepare, (seed, view), extraction):
                values[view, numbers] = rows
                seen[view, numbers] = True
    finally:
        network.train(was_training)
    kept = seen.all(dim=0)
    if not kept.any():
        raise DataRefused("none of the pictures can be read")
    indexes = torch.tensor([sample.index for sample in samples])
    return Features(values[:, kept], indexes[kept])


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
    prepare: Transform,
    seed_and_view: tuple[int, int],
    extraction: FeatureExtraction,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (positions in the samples, their features)."""
    seed, view = seed_and_view
    batches = Batches(
        samples,
        prepare,
        batch_size=extraction.batch_size,
        sampling=Sampling(seed_of("view", seed), shuffled=False),
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

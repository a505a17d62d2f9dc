"""Features of a frozen network: the inputs of its classifier, for a few views of each picture.

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
    """How the frozen network is run."""

    batch_size: int = 64
    workers: int = 0  # processes that decode; 0 decodes in this one
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Features of N pictures in V views, on the CPU."""

    values: Tensor  # float32 (V, N, D)
    indexes: Tensor  # int64 (N,), classes


def linear_classifier(network: nn.Module) -> nn.Linear:
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
    """Runs pictures through a network and returns the inputs of its classifier.

    It takes 4 * V * N * D bytes, and twice that for a moment: 16 MB a view for 3,000 pictures and
    1,280 features. A picture that can no longer be read is left out of all views. A view depends only
    on `seed` and the positions of view and picture.

    Raises:
        ArchitectureRefused: the classifier is not one linear layer with one row per picture.
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
    # A hook, because the embedding that timm's methods return may differ from the classifier's input.
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
    # Yields (positions in the samples, their features).
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

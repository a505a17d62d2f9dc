"""Builds networks with trained weights, with their own classifier or a new one."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

from training.config.config import Network
from training.errors import ArchitectureRefused, WeightsRefused, first_line
from training.networks.architectures import (
    PixelsToProbabilities,
    classifiers,
    create,
    normalise,
    preprocessing_of,
)
from training.networks.weights import HUB, Weights, load_into, named_as_in, read_weights

# A network is built with this many classes to find its classifier's tensors.
_PROBE_CLASSES: Final = 1000


def build(wanted: Network, n_classes: int) -> tuple[nn.Module, Weights | None]:
    """Builds the network of a config, with a random classifier from torch's global generator.

    Returns:
        The network in evaluation mode, and its weights' source; None if all weights are random.

    Raises:
        ArchitectureRefused: the architecture is unknown, its classifier cannot be replaced, or it
            cannot be exported.
        WeightsRefused: the weights are unsafe, unreadable or of another network.
    """
    weights: Weights | None = None
    if wanted.weights is None:
        network = create(wanted, n_classes)
    else:
        network, weights = load_trained(wanted)
        reset: Any = getattr(network, "reset_classifier", None)
        if reset is None:
            raise ArchitectureRefused(f"the classifier of {wanted.architecture} cannot be replaced")
        reset(n_classes)
        network.eval()

    check_answers(network)
    return network, weights


def load_trained(wanted: Network, n_classes: int | None = None) -> tuple[nn.Module, Weights]:
    """Builds a network with the weights of a package, a file or the hub, classifier included.

    Args:
        wanted: its weights are "package:<distribution>", "hub" or a path.
        n_classes: C of the weights; None reads it from them.

    Returns:
        The network in evaluation mode, and its weights; without tensors if timm loaded them.

    Raises:
        ArchitectureRefused: the architecture is unknown or does not accept an option.
        WeightsRefused: the weights are unsafe, unreadable or of another network.
    """
    if wanted.weights is None:
        raise ValueError(f"no weights of {wanted.architecture} are named")
    if wanted.weights == HUB:
        network = create(wanted, n_classes)
        config = getattr(network, "pretrained_cfg", {})
        hub_id = config.get("hf_hub_id") or wanted.architecture
        return network, Weights({}, f"hub {hub_id}", config.get("license"))

    weights = read_weights(wanted.weights, wanted.weights_key)
    network = create(wanted, _PROBE_CLASSES if n_classes is None else n_classes)
    name, found = _classifier_in(weights, network)
    if n_classes is None:
        network = network if found in (None, _PROBE_CLASSES) else create(wanted, found)
    elif found not in (None, n_classes):
        raise WeightsRefused(
            f"{name} has {found} rows: the weights have {found} classes, and the labels are "
            f"{n_classes}; --labels must name the classes of the weights, in their order"
        )
    load_into(network, weights)
    return network, weights


def check_answers(network: nn.Module) -> None:
    """Compares a network with its exportable form on random pixels.

    Called before training, so that a network that cannot be exported fails now rather than at the end.

    Raises:
        ArchitectureRefused: it does not run at its input size, or its logits are not those of
            `forward_head` after `forward_features`.
    """
    spec = preprocessing_of(network)
    side = spec.crop_size_px
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
    wrapped = PixelsToProbabilities(network, spec.mean, spec.std).eval()

    with torch.inference_mode():
        for parameter in wrapped.network.parameters():
            if not parameter.any():  # a classifier that starts at zero would make any logits equal
                parameter.normal_(std=0.02, generator=generator)
        try:
            expected = wrapped.network(normalise(pixels, spec))
            logits = wrapped(pixels.permute(0, 2, 3, 1))[1]
            close = torch.allclose(logits, expected, rtol=1e-3, atol=1e-3)
        except (RuntimeError, TypeError, AttributeError, AssertionError, ValueError) as error:
            raise ArchitectureRefused(
                f"the network does not run at {side} x {side} pixels: {first_line(error)}"
            ) from error

    if not close:
        raise ArchitectureRefused(
            "the network's logits are not forward_head(forward_features(images)), "
            "so it cannot be exported"
        )


def _classifier_in(weights: Weights, network: nn.Module) -> tuple[str, int | None]:
    """Returns the name of the classifier's weight, and the number of classes by its shape."""
    first = classifiers(network)[:1]
    key = next((f"{name}.weight" for name, part in network.named_modules() if part in first), "")
    tensors = named_as_in(network, weights)
    names, own = list(weights.tensors), list(network.state_dict())
    if key in own and key not in tensors and weights.in_order and len(names) == len(own):
        key = names[own.index(key)]
    tensor = tensors.get(key, weights.tensors.get(key))
    # If it stays unknown, loading reports what does not fit.
    return key, None if tensor is None or tensor.ndim < 2 else tensor.shape[0]

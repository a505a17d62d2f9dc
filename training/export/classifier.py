"""Finds the last layer of a network, whose weights class activation maps need.

Shapes: N pictures, S = crop size in pixels, C classes, D features.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import nn

from contract.arrays import ClassifierWeights
from training.networks.architectures import classifiers, feature_layout, has_positions

# Of a logit, relative to the largest one. Reordered float32 sums differ by about 1e-6.
_TOLERANCE: Final = 1e-4


def linear_classifier(network: nn.Module, size_px: int) -> ClassifierWeights | None:
    """Returns the weights of the last layer if it is linear in the mean of the feature map.

    None for a network with something in between, such as a norm or a hidden layer, or without a
    feature map. Whether it is so is tried with random pictures, not guessed from names.

    Args:
        network: in evaluation mode, normalised pixels (N, 3, S, S) to logits (N, C).
        size_px: S.
    """
    layer = classifiers(network)[0] if len(classifiers(network)) == 1 else None
    if not isinstance(layer, nn.Linear):
        return None

    parts: Any = network
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        features = parts.forward_features(torch.randn(2, 3, size_px, size_px, generator=generator))
        if not has_positions(features):
            return None
        pooled = features.mean((2, 3) if feature_layout(network) == "NCHW" else (1, 2))  # (N, D)
        if pooled.shape[1] != layer.in_features:
            return None

        logits = parts.forward_head(features)  # (N, C)
        difference = float((layer(pooled) - logits).abs().max())
    if not difference <= _TOLERANCE * float(logits.abs().max()):
        return None

    tensors = layer.state_dict()
    weight = tensors["weight"].float().numpy().copy()  # (C, D)
    bias = tensors["bias"].float().numpy().copy() if "bias" in tensors else np.zeros(len(weight))
    return ClassifierWeights(weight, bias.astype(np.float32))

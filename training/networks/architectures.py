"""Networks by name, and the wrapper that turns one into pixels in, probabilities out.

Shapes: N pictures, S = crop size in pixels, C classes, D = length of the embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from contract.manifest import Layout, Preprocessing
from contract.preprocessing import INTERPOLATIONS, resize_size_for
from training.config.config import Network
from training.errors import ArchitectureRefused, did_you_mean, first_line
from training.networks.convnet import DEFAULT_SIZE_PX, ConvNet, ConvNetOptions
from training.networks.weights import HUB
from training.system.torch_compat import timm

OUTPUTS: Final = ("probabilities", "logits", "embedding", "feature_map")
"""Outputs of an exported graph, in order; each name is also its kind.

A network without features that have a position, such as a plain transformer, has no `feature_map`.
"""

# Options with a config key of their own, or that would make timm build something else.
_RESERVED: Final = frozenset(
    {
        "cache_dir",
        "checkpoint_path",
        "exportable",
        "features_only",
        "img_size",
        "in_chans",
        "num_classes",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_strict",
        "scriptable",
    }
)

# timm's crop modes and what the contract calls them; "border" pads and is not reproduced.
_RESIZE_MODES: Final = {"center": "shortest_side", "squash": "squash"}
_CROP_MODES: Final = {ours: timms for timms, ours in _RESIZE_MODES.items()}


class Builder(Protocol):
    """Builds a network with the methods and `pretrained_cfg` of timm's networks."""

    def __call__(self, n_classes: int, input_size_px: int | None, **options: Any) -> nn.Module:
        """Returns a network with random weights.

        Raises:
            TypeError, ValueError: an option is unknown or has an impossible value.
        """
        ...


BUILDERS: Final[dict[str, Builder]] = {}
"""Architectures of this package and of its users, by name; they come before timm's."""


def register(builder: Builder) -> Builder:
    """Registers an architecture under the name of its function; use it as a decorator.

    Raises:
        ValueError: the name is taken.
    """
    name: str = builder.__name__  # type: ignore[attr-defined] # builders are functions
    if name in BUILDERS:
        raise ValueError(f"the architecture {name!r} is registered twice")
    BUILDERS[name] = builder
    return builder


@register
def convnet(n_classes: int, input_size_px: int | None, **options: Any) -> nn.Module:
    # TOML has lists where the options have tuples.
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in options.items()
    }
    return ConvNet(n_classes, input_size_px or DEFAULT_SIZE_PX, ConvNetOptions(**values))


def create(wanted: Network, n_classes: int | None = None) -> nn.Module:
    """Builds a registered network, or one of timm's, in evaluation mode.

    Random weights come from torch's global generator; seed it before.

    Args:
        wanted: its architecture is a name in `BUILDERS`, or one of timm's with an optional tag after
            a dot. This function loads no weights but those of the hub.
        n_classes: C; None for timm's own number.

    Raises:
        ArchitectureRefused: the architecture is unknown, it does not accept the size or an option, or
            the hub has no weights for it.
    """
    architecture, size_px = wanted.architecture, wanted.input_size_px
    check_known(architecture)
    from_hub = wanted.weights == HUB
    if architecture in BUILDERS:
        if n_classes is None or from_hub:
            what = "weights on the hub" if from_hub else "number of classes of its own"
            raise ArchitectureRefused(f"{architecture} has no {what}")
        build: Callable[..., nn.Module] = partial(BUILDERS[architecture], n_classes, size_px)
    else:
        reserved = sorted(_RESERVED & wanted.options.keys())
        if reserved:
            raise ArchitectureRefused(
                f"{architecture}: {', '.join(reserved)} cannot be an option; classes, weights and "
                "input size have keys of their own"
            )
        build = partial(timm().create_model, architecture, pretrained=from_hub)
        if n_classes is not None:
            build = partial(build, num_classes=n_classes)
        if size_px is not None and _has_fixed_size(architecture):
            build = partial(build, img_size=size_px)

    network = _build(architecture, build, wanted.options)
    _override_evaluation(network, wanted)
    return network.eval()


def check_known(architecture: str) -> None:
    """Raises ArchitectureRefused, with similar names, if neither `BUILDERS` nor timm has it."""
    if architecture not in BUILDERS and not timm().is_model(architecture.split(".")[0]):
        known = [*BUILDERS, *timm().list_models()]
        hint = did_you_mean(architecture, known) or "; timm.list_models() has all"
        raise ArchitectureRefused(f"timm has no architecture {architecture!r}{hint}")


def classifiers(network: Any) -> tuple[nn.Module, ...]:
    # Distilled networks have two. Some networks do not say.
    found = network.get_classifier() if hasattr(network, "get_classifier") else ()
    return found if isinstance(found, tuple) else (found,)


def evaluation_transform(network: nn.Module) -> Any:
    """Returns timm's own evaluation transform: PIL image -> float32 (3, S, S)."""
    data = timm().data
    return data.create_transform(**data.resolve_data_config({}, model=network), is_training=False)


def preprocessing_of(network: nn.Module) -> Preprocessing:
    """Returns a network's evaluation preprocessing in the terms of the manifest.

    Raises:
        ArchitectureRefused: the contract does not have its crop mode, size or interpolation.
    """
    config = timm().data.resolve_data_config({}, model=network)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise ArchitectureRefused(
            f"the input is {channels} x {height} x {width}, not an RGB square"
        )
    if config["crop_mode"] not in _RESIZE_MODES:
        raise ArchitectureRefused(f"crop mode {config['crop_mode']!r} is not supported")
    if config["interpolation"] not in INTERPOLATIONS:
        raise ArchitectureRefused(f"interpolation {config['interpolation']!r} is not supported")

    return Preprocessing.model_validate(
        {
            "resize_mode": _RESIZE_MODES[config["crop_mode"]],
            "resize_size_px": resize_size_for(height, config["crop_pct"]),
            "crop_size_px": height,
            "interpolation": config["interpolation"],
            "mean": config["mean"],
            "std": config["std"],
            "in_graph": True,
        }
    )


def normalise(images: Tensor, spec: Preprocessing) -> Tensor:
    """Normalises a batch exactly as an exported graph does.

    Args:
        images: uint8, shape (N, 3, S, S), 0..255, on any device.
        spec: its mean and standard deviation are used.

    Returns:
        float32, shape (N, 3, S, S), on the same device.
    """
    scale, shift = _scale_and_shift(spec.mean, spec.std)
    return images.to(torch.float32) * scale.to(images.device) + shift.to(images.device)


class PixelsToProbabilities(nn.Module):
    """A network with normalisation before it and softmax after it.

    Args:
        network: normalised float32 (N, 3, S, S) to logits (N, C), as timm's. It is copied.
        mean: of each channel, for values scaled to 0..1.
        std: of each channel.
        temperature: > 0; logits are divided by it before the softmax.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.network = _with_plain_pooling(network)
        self.temperature = temperature
        scale, shift = _scale_and_shift(mean, std)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """RGB pixels, uint8 (N, S, S, 3), to the tensors of `OUTPUTS`.

        They are probabilities (N, C), logits (N, C), the embedding (N, D) and, if the features have
        positions, the feature map (N, K, s, s) or (N, s, s, K).
        """
        network: Any = self.network
        features = network.forward_features(self._normalised(image))
        embedding = network.forward_head(features, pre_logits=True)  # (N, D)
        # Not classifier(embedding): some networks normalise in between or have two classifiers. The
        # exporter merges what both calls compute.
        logits = network.forward_head(features)  # (N, C)
        answers = (torch.softmax(logits / self.temperature, dim=-1), logits, embedding)
        return (*answers, features) if has_positions(features) else answers

    def _normalised(self, image: Tensor) -> Tensor:
        # onnxruntime moves a permutation behind the arithmetic that follows it. There every third
        # value has another factor, which takes ten times as long. It does not move one past a
        # reshape, so each channel is one long row here (docs/decisions/0026).
        side_px = image.shape[1]
        rows = image.permute(0, 3, 1, 2).flatten(2).to(torch.float32)  # (N, 3, S * S)
        normalised = rows * self.scale.flatten(2) + self.shift.flatten(2)
        return normalised.view(-1, 3, side_px, side_px)  # (N, 3, S, S)


def has_positions(features: Any) -> bool:
    # Plain transformers have a list of tokens, (N, T, D), and distilled networks a tuple.
    return isinstance(features, Tensor) and features.ndim == 4


def feature_layout(network: nn.Module) -> Layout:
    """Returns the axes of a network's feature map, if it has one."""
    # timm's networks say so where it is not NCHW; the attribute is a string or an enum of strings.
    found = getattr(network, "output_fmt", "NCHW")
    return "NHWC" if getattr(found, "value", found) == "NHWC" else "NCHW"


def _scale_and_shift(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> tuple[Tensor, Tensor]:
    # (x / 255 - mean) / std = x * scale + shift: one multiplication and one addition per value.
    deviation = torch.tensor(std, dtype=torch.float64)
    shift = -torch.tensor(mean, dtype=torch.float64) / deviation
    scale = 1 / (255 * deviation)
    return scale.float().view(1, 3, 1, 1), shift.float().view(1, 3, 1, 1)


class _MeanPool(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.mean((2, 3), keepdim=True)


def _with_plain_pooling(network: nn.Module) -> nn.Module:
    # The exporter turns AdaptiveAvgPool2d(1) into a chain of shape arithmetic; a mean becomes one
    # ReduceMean.
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, _MeanPool())
    return network


def _build(
    architecture: str, build: Callable[..., nn.Module], options: Mapping[str, Any]
) -> nn.Module:
    try:
        return build(**options)
    except (TypeError, ValueError, AssertionError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        with_options = f" with {given}" if given else ""
        raise ArchitectureRefused(
            f"{architecture} cannot be built{with_options}: {first_line(error)}"
        ) from error
    except (OSError, RuntimeError) as error:
        raise ArchitectureRefused(
            f"timm cannot make {architecture}: {first_line(error)}"
        ) from error


def _has_fixed_size(architecture: str) -> bool:
    # Mostly transformers: timm must know the input size when it builds them.
    config = timm().get_pretrained_cfg(architecture)
    return config is not None and bool(config.fixed_input_size)


def _override_evaluation(network: nn.Module, wanted: Network) -> None:
    # `preprocessing_of` and `evaluation_transform` read `pretrained_cfg`.
    changes: dict[str, Any] = {}
    if wanted.input_size_px is not None:
        changes["input_size"] = (3, wanted.input_size_px, wanted.input_size_px)
    if wanted.crop_fraction is not None:
        changes["crop_pct"] = wanted.crop_fraction
    if wanted.resize_mode is not None:
        changes["crop_mode"] = _CROP_MODES[wanted.resize_mode]
    if changes:
        given: Any = getattr(network, "pretrained_cfg", None) or {}
        network.pretrained_cfg = {**given, **changes}  # type: ignore[assignment] # timm's dict

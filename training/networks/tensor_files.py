"""Reads the tensors of a file without running anything in it.

A checkpoint is not trusted. safetensors files hold numbers only. A pickle could run code, so
`torch.load` gets `weights_only=True`, and TorchScript, legacy tar files and compressed archives are
refused unopened. Harmless objects that training scripts save beside the weights are named in a table
and replaced by an empty stand-in: their own classes are neither imported nor called.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from training.errors import WeightsRefused
from training.networks.candidates import choose
from training.networks.contents import describe_other_content

SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".th", ".pkl")
MAX_FILE_BYTES: Final = 8 * 2**30

_EXTRA_STATE: Final = "_extra_state"  # what torch's modules save beside tensors
_COMPILED: Final = re.compile(r"(^|\.)_orig_mod\.")  # of torch.compile, at any depth
_PARALLEL: Final = "module."  # of DataParallel, DistributedDataParallel and AveragedModel
_N_AVERAGED: Final = "n_averaged"  # counter of AveragedModel
# Nobody saves these with weights. Anything else may be a class of the user's own.
_HOSTILE: Final = re.compile(
    r"(os|posix|nt|sys|subprocess|runpy|shutil|socket|importlib|webbrowser|pickle)\.|"
    r"(builtins\.|__builtin__\.)?(eval|exec|compile|open|__import__)$"
)


class TensorFile(NamedTuple):
    """The tensors of a file and the key under which the file has them, "" if they stand alone."""

    tensors: dict[str, Tensor]
    key: str


def read_tensors(path: Path, key: str | None = None) -> TensorFile:
    """Reads a safetensors or `torch.save` file without running anything in it.

    Args:
        path: the file.
        key: where the file has the tensors, such as "state_dict"; None finds them.

    Returns:
        The tensors by name, on the CPU, without the prefixes of DDP and torch.compile.

    Raises:
        WeightsRefused: the file is missing, too large, unsafe, unreadable, or holds no tensors, or
            several sets of them.
    """
    if not path.is_file():
        what = "a folder; give a file in it" if path.is_dir() else "no such file"
        raise WeightsRefused(f"{path.name}: {what}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise WeightsRefused(f"{path.name}: expected one of {', '.join(SUFFIXES)}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise WeightsRefused(f"{path.name}: larger than {MAX_FILE_BYTES / 2**30:.0f} GiB")
    other = describe_other_content(path)
    if other is not None:
        raise WeightsRefused(f"{path.name} is {other}")
    content = _read_safetensors(path) if suffix == SUFFIXES[0] else _read_pickle(path)
    chosen = choose(content, key, path.name)
    return TensorFile(_plain_tensors(chosen.entries, path.name), chosen.key)


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
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can make the restricted unpickler raise anything
        raise WeightsRefused(f"{path.name}: {_reason(path, error)}") from error


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
        if folders[-1:] == ("archive_format",):
            raise WeightsRefused(
                f"{path.name}: a program of torch.export, which is refused; export the network to "
                "ONNX and import that file, or save its weights alone: "
                'torch.save(program.state_dict, "weights.pth")'
            )
        if "code" in folders or member.filename.endswith("constants.pkl"):
            raise WeightsRefused(
                f"{path.name}: TorchScript files are programs and are refused; if you trust it, save "
                f'its weights alone: torch.save(torch.jit.load("{path.name}").state_dict(), '
                '"weights.pth")'
            )
        if member.compress_type != zipfile.ZIP_STORED:
            raise WeightsRefused(f"{path.name}: compressed archives are refused")
        if ".." in folders or member.filename.startswith("/"):
            raise WeightsRefused(f"{path.name}: the archive names a file outside itself")


def _reason(path: Path, error: Exception) -> str:
    needed = _classes_needed(path, error)
    for name in needed:
        if _HOSTILE.match(name):
            return (
                f"would call {name} when it is opened; weights need no such call, so do not use it"
            )
    if any(name.startswith("torch.nn.modules.") for name in needed):
        return (
            "holds a whole network as a pickle, which is a program and is refused; where it was made, "
            'save its weights alone: torch.save(model.state_dict(), "weights.pth"), or export a network that '
            "timm does not have with torch.onnx.export"
        )
    if needed:
        more = f" and {len(needed) - 1} more classes" if len(needed) > 1 else ""
        return (
            f"holds {needed[0]}{more} beside the weights, which is refused because it could run code; "
            "if you trust the file, save its weights alone where it was made: "
            f'c = torch.load("{path.name}", map_location="cpu", weights_only=False); '
            'torch.save(c["state_dict"], "weights.pth"), with the key that the weights have in c. Where the '
            "network itself is there, torch.onnx.export makes a file that can be imported"
        )
    return (
        f"cannot be read as plain weights ({type(error).__name__}); save it again where it was made: "
        'torch.save(model.state_dict(), "weights.pth")'
    )


def _classes_needed(path: Path, error: Exception) -> list[str]:
    """Returns the names in a pickle that are not allowed, as far as they can be read."""
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001 - not an archive, or a hostile one
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        return [found[1]] if found else []


def _plain_tensors(entries: Mapping[str, object], file: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in entries.items():
        if str(name).endswith(_EXTRA_STATE):
            continue
        if not isinstance(name, str):
            raise WeightsRefused(f"{file}: an entry has the name {name!r}, which is no text")
        if not isinstance(value, Tensor) or not _is_plain(value):
            what = "an unusual tensor" if isinstance(value, Tensor) else type(value).__name__
            raise WeightsRefused(f"{file}: {name} is {what}, not a plain tensor")
        tensors[_COMPILED.sub(r"\1", name)] = value
    if len(tensors) < sum(not str(name).endswith(_EXTRA_STATE) for name in entries):
        raise WeightsRefused(f"{file}: has tensors twice, with and without _orig_mod.; keep one")

    while all(name.startswith(_PARALLEL) for name in tensors if name != _N_AVERAGED):
        tensors = {
            name.removeprefix(_PARALLEL): tensor
            for name, tensor in tensors.items()
            if name != _N_AVERAGED
        }
        if not tensors:
            break
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    return (
        tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    )


class _Ignored:
    """Takes the place of an object beside the weights and keeps nothing of it."""

    def __init__(self, *_: object) -> None:
        pass

    def __new__(cls, *_: object) -> Any:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


class _AsDict:
    """Takes the place of a subclass of dict."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()


class _AsList:
    """Takes the place of a list-like object."""

    def __new__(cls, *_: object) -> Any:
        return []


_IGNORED: Final = (
    *("argparse.Namespace", "types.SimpleNamespace", "typing.Any"),
    *("builtins.dict", "builtins.float", "builtins.int", "builtins.list", "builtins.str"),
    *("pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath"),
    *("pathlib._local.Path", "pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
    *("datetime.date", "datetime.datetime", "datetime.timedelta", "datetime.timezone"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("numpy.ndarray", "numpy.dtype"),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float32", "Float64", "Int32", "Int64", "Bool")),
    "torch.torch_version.TorchVersion",
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "Boolean", "Float", "Integer", "Path", "String")
    ),
)
_DICTS: Final = (
    "collections.defaultdict",
    *(
        "pytorch_lightning.utilities.parsing.AttributeDict",
        "lightning_fabric.utilities.data.AttributeDict",
    ),
    *(
        "lightning.pytorch.utilities.parsing.AttributeDict",
        "lightning.fabric.utilities.data.AttributeDict",
    ),
    *("addict.addict.Dict", "easydict.EasyDict", "yacs.config.CfgNode"),
)
# torch takes a pair as "use this object where the file has that name".
_STAND_INS: Final[list[Callable[..., Any] | tuple[Callable[..., Any], str]]] = [
    *((_Ignored, name) for name in _IGNORED),
    *((_AsDict, name) for name in _DICTS),
    (_AsList, "collections.deque"),
]

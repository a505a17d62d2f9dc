"""float32 arrays in the files of a version, as .npz: an archive of named arrays that holds no code.

Shapes: C classes, D features.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.errors import VersionCorrupt
from contract.versions import Version

Array = NDArray[np.float32]

_UNREADABLE: Final = (ValueError, OSError, KeyError, EOFError, MemoryError, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True)
class ClassifierWeights:
    """The last layer of a network: logits = weight @ features + bias.

    Attributes:
        weight: float32, shape (C, D).
        bias: float32, shape (C,).
    """

    weight: Array
    bias: Array

    def to_file(self) -> bytes:
        """Returns the file that the manifest's `classifier` names."""
        return pack_arrays({"weight": self.weight, "bias": self.bias})


def pack_arrays(arrays: Mapping[str, Array]) -> bytes:
    """Returns float32 arrays as an uncompressed .npz file, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    named: dict[str, Any] = {name: array.astype(np.float32) for name, array in arrays.items()}
    np.savez(buffer, **named)
    return buffer.getvalue()


def unpack_arrays(data: bytes, names: tuple[str, ...]) -> dict[str, Array]:
    """Reads arrays from an uncompressed .npz file. Nothing in it is run.

    Raises:
        ValueError: it is not such a file, an array is missing or not float32, or a value is not
            finite.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # A compressed member could be a thousand times as large as the file.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("it is compressed")
            arrays = {
                name: np.load(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
                for name in names
            }
    except _UNREADABLE as error:
        raise ValueError(f"not an .npz file with {', '.join(names)}") from error

    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ValueError(f"{name} is not float32")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has a value that is not finite")
    return arrays


def read_classifier(version: Version) -> ClassifierWeights | None:
    """Returns the weights of the version's last layer, None if it has none.

    Raises:
        VersionCorrupt: the file cannot be read, or its shapes differ from the manifest.
    """
    declared = version.manifest.classifier
    if declared is None:
        return None

    try:
        arrays = unpack_arrays(version.contents[declared.file], ("weight", "bias"))
    except ValueError as error:
        raise VersionCorrupt(f"{declared.file}: {error}") from error

    found = ClassifierWeights(arrays["weight"], arrays["bias"])
    n_classes = version.manifest.n_classes
    expected = ((n_classes, declared.n_features), (n_classes,))
    if (found.weight.shape, found.bias.shape) != expected:
        raise VersionCorrupt(
            f"{declared.file}: the shapes are {found.weight.shape} and {found.bias.shape}, "
            f"the manifest says {expected[0]} and {expected[1]}"
        )
    return found

"""A cache of preprocessed pictures.

A run reads the same validation and test pictures many times: in each epoch, for the calibration, and
for every graph it compares. Decoding them may take longer than the graph.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contract.manifest import Interface, Preprocessing
from contract.preprocessing import Tensor, read_pixels, to_row
from contract.versions import sha256


class PreparedPictures:
    """Caches pixels by the digest of their file and the preprocessing.

    The first pictures stay until the end; the rest is prepared again each time. Every pass reads all
    pictures in the same order, so a cache that evicts the oldest would evict each one just before it
    is needed.

    Args:
        max_bytes: limit of all cached pixels; 0 caches nothing. A picture of 224 px takes 150 kB.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self._max_bytes = max_bytes
        self._free_bytes = max_bytes
        self._kept: dict[tuple[str, Preprocessing], NDArray[np.uint8]] = {}

    def __reduce__(self) -> tuple[object, ...]:
        # A worker process gets an empty cache: it would only hold pictures a second time.
        return type(self), ()

    def pixels(self, data: bytes, spec: Preprocessing) -> NDArray[np.uint8]:
        """Returns uint8, shape (S, S, 3), as `read_pixels` does; read-only if it is cached."""
        key = (sha256(data), spec)
        found = self._kept.get(key)
        if found is None:
            found = read_pixels(data, spec)
            if found.nbytes <= self._free_bytes:
                found = found.copy()  # the original may be a view of a larger picture
                found.flags.writeable = False  # shared by all callers
                self._kept[key] = found
                self._free_bytes -= found.nbytes
        return found

    def row(self, data: bytes, manifest: Interface) -> Tensor:
        return to_row(self.pixels(data, manifest.preprocessing), manifest)

    def has_room(self, n_pictures: int, spec: Preprocessing) -> bool:
        # Of an empty cache.
        return n_pictures * 3 * spec.crop_size_px**2 <= self._max_bytes

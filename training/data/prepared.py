"""Pictures as networks see them, prepared once and kept while there is room.

A run looks at the same validation and test pictures again and again: in each epoch, for the
calibration, with every graph that is compared. Decoding them may cost more than the graph does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contract.manifest import Interface, Preprocessing
from contract.preprocessing import Tensor, read_pixels, to_row
from contract.versions import sha256


class PreparedPictures:
    """Keeps pixels under the digest of their file and the preprocessing that made them.

    So what it returns is what preparing the same bytes again would give. The first pictures stay,
    and what there is no room for is prepared anew each time: every pass goes through all pictures,
    where a cache that drops the oldest would drop each just before it is needed.

    Args:
        max_bytes: of all pixels that are kept; 0 keeps none. A picture of 224 px has 150 kB.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self._max_bytes = max_bytes
        self._free_bytes = max_bytes
        self._kept: dict[tuple[str, Preprocessing], NDArray[np.uint8]] = {}

    def __reduce__(self) -> tuple[object, ...]:
        # A worker process would keep the pictures a second time, where nobody else finds them.
        return type(self), ()

    def pixels(self, data: bytes, spec: Preprocessing) -> NDArray[np.uint8]:
        """Returns what `contract.preprocessing.read_pixels` does: uint8, shape (S, S, 3).

        Raises:
            ImageError: the file is not an acceptable picture.
        """
        key = (sha256(data), spec)
        found = self._kept.get(key)
        if found is None:
            found = read_pixels(data, spec)
            if found.nbytes <= self._free_bytes:
                found = found.copy()  # it may be a view of a larger picture
                found.flags.writeable = False
                self._kept[key] = found
                self._free_bytes -= found.nbytes
        return found

    def row(self, data: bytes, manifest: Interface) -> Tensor:
        """Returns what `contract.preprocessing.read_input` does."""
        return to_row(self.pixels(data, manifest.preprocessing), manifest)

    def has_room(self, n_pictures: int, spec: Preprocessing) -> bool:
        """Tells whether so many pictures would find room if there were no others."""
        return n_pictures * 3 * spec.crop_size_px**2 <= self._max_bytes

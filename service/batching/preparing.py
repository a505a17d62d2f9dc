"""The recipe that makes one picture ready for a run, carried out by whoever has the time for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from contract.errors import ImageError
from contract.images.decoding import ImageLimits, declared_pixels
from contract.manifest import Manifest
from contract.preprocessing import Tensor, decode_for, to_input
from service.errors import DeadlineExceeded, Overloaded

LARGE_PIXELS: Final = 4_000_000
"""Pictures with more must not hold up usual ones."""


class Preparation:
    """The recipe for one picture: from the file's bytes to one row of the graph's input.

    Attributes:
        image: the whole file.
        decode_s: seconds that decoding took; 0 before.
        preprocess_s: seconds from pixels to the row; 0 before.
    """

    __slots__ = (
        "_clock",
        "_deadline_s",
        "_limits",
        "_manifest",
        "decode_s",
        "image",
        "preprocess_s",
    )

    def __init__(
        self,
        image: bytes,
        manifest: Manifest,
        limits: ImageLimits,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.image, self._manifest, self._limits = image, manifest, limits
        self._deadline_s, self._clock = deadline_s, clock
        self.decode_s = self.preprocess_s = 0.0

    def __call__(self) -> Tensor:
        """Prepares the picture; on any thread.

        Raises:
            ImageError: the picture is not acceptable.
            DeadlineExceeded: its deadline has passed.
            Overloaded: there is not enough memory.
        """
        started_s = self._clock()
        if started_s >= self._deadline_s:
            raise DeadlineExceeded("the deadline passed before the picture was decoded")
        try:
            picture = decode_for(self.image, self._manifest.preprocessing, self._limits)
            decoded_s = self._clock()
            row = to_input(picture, self._manifest)
        except MemoryError as error:
            raise Overloaded(
                "not enough memory to decode this picture now", reason="memory"
            ) from error
        self.decode_s, self.preprocess_s = decoded_s - started_s, self._clock() - decoded_s
        return row


def is_large(image: bytes) -> bool:
    """Says whether a file declares so many pixels that it costs several times what a usual one does."""
    try:
        return declared_pixels(image) > LARGE_PIXELS
    except ImageError:
        return False  # whoever prepares it says what is wrong with it

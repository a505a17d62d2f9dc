"""The recipe that makes one picture ready for a run, carried out by whoever has the time for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from contract.images import ImageFile
from contract.manifest import Manifest
from contract.preprocessing import Tensor, decode_file, to_input
from service.errors import DeadlineExceeded, Overloaded

LARGE_PIXELS: Final = 4_000_000
"""Pictures with more must not hold up usual ones."""


class Preparation:
    """The recipe for one picture: from the file's bytes to one row of the graph's input.

    Attributes:
        file: the picture; its header has been read.
        decode_s: seconds that decoding took; 0 before.
        preprocess_s: seconds from pixels to the row; 0 before.
    """

    __slots__ = (
        "_clock",
        "_deadline_s",
        "_manifest",
        "decode_s",
        "file",
        "preprocess_s",
    )

    def __init__(
        self,
        file: ImageFile,
        manifest: Manifest,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.file, self._manifest = file, manifest
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
            picture = decode_file(self.file, self._manifest.preprocessing)
            decoded_s = self._clock()
            row = to_input(picture, self._manifest)
        except MemoryError as error:
            raise Overloaded(
                "not enough memory to decode this picture now", reason="memory"
            ) from error
        self.decode_s, self.preprocess_s = decoded_s - started_s, self._clock() - decoded_s
        return row


def is_large(file: ImageFile) -> bool:
    """Says whether a file declares so many pixels that it costs several times what a usual one does."""
    return file.header.declared_pixels > LARGE_PIXELS

"""Answers pictures with an engine of this process: prepares them and has a batcher run them.

On a CPU a lane prepares a picture itself right before it runs it: one thread a core does all the
work of a picture, without handing it on. Pictures that cost much more than others to decode are
prepared on threads apart, of which there are few, so that they hold up no lane and each other only.
On a GPU, whose lane should never wait for a decoder, all pictures are prepared apart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from contract.errors import ImageError
from contract.images.decoding import ImageLimits, declared_pixels
from contract.manifest import Manifest
from contract.preprocessing import Tensor, decode_for, to_input
from service.batching.batcher import Batcher
from service.errors import DeadlineExceeded, Overloaded
from service.serving.answering import Answered

COSTLY_PIXELS: Final = 4_000_000
"""Pictures with more are prepared apart: they cost several times what a usual one does."""


class Preparation:
    """The recipe for one picture: from the file's bytes to one row of the graph's input.

    Attributes:
        decode_s: seconds that decoding took; 0 before.
        preprocess_s: seconds from pixels to the row; 0 before.
    """

    __slots__ = (
        "_clock",
        "_deadline_s",
        "_image",
        "_limits",
        "_manifest",
        "decode_s",
        "preprocess_s",
    )

    def __init__(
        self,
        image: bytes,
        manifest: Manifest,
        limits: ImageLimits,
        deadline_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._image, self._manifest, self._limits = image, manifest, limits
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
            picture = decode_for(self._image, self._manifest.preprocessing, self._limits)
            decoded_s = self._clock()
            row = to_input(picture, self._manifest)
        except MemoryError as error:
            raise Overloaded(
                "not enough memory to decode this picture now", reason="memory"
            ) from error
        self.decode_s, self.preprocess_s = decoded_s - started_s, self._clock() - decoded_s
        return row


class LocalAnswerer:
    """Answers with one batcher of this process."""

    def __init__(
        self,
        batcher: Batcher,
        manifest: Manifest,
        limits: ImageLimits,
        apart: Executor,
        *,
        on_lanes: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connects the parts.

        Args:
            batcher: of the version.
            manifest: of the version.
            limits: what one picture may cost.
            apart: threads that prepare what the lanes do not.
            on_lanes: lanes prepare pictures that are not costly.
            clock: monotonic seconds; deadlines are on the same clock.
        """
        self.batcher = batcher
        self._manifest = manifest
        self._limits = limits
        self._apart = apart
        self._on_lanes = on_lanes
        self._clock = clock

    async def answer(self, image: bytes, deadline_s: float) -> Answered:
        """Answers one image file; see `Answerer.answer`."""
        recipe = Preparation(image, self._manifest, self._limits, deadline_s, self._clock)
        item: Tensor | Preparation = recipe
        if not self._on_lanes or _is_costly(image):
            loop = asyncio.get_running_loop()
            item = await loop.run_in_executor(self._apart, recipe)
        row = await self.batcher.submit(item, deadline_s)
        queue_s, run_s = row.queue_s, row.run_s
        return Answered(
            row.probabilities, recipe.decode_s, recipe.preprocess_s, queue_s, run_s, row.batch_size
        )

    def expected_s(self) -> float:
        """Returns how long a picture that came now would take; see `Answerer.expected_s`."""
        return self.batcher.expected_s()


def _is_costly(image: bytes) -> bool:
    try:
        return declared_pixels(image) > COSTLY_PIXELS
    except ImageError:
        return False  # whoever prepares it says what is wrong with it

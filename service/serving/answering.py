"""What answers pictures with one version of a model: the seam between the use case and its engines.

In this process that is `service.batching.preparing.LocalAnswerer`; with worker processes it is their pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Answered:
    """One picture's probabilities and where its time went.

    Attributes:
        probabilities: float32, shape (C,).
        decode_s: seconds from the file's bytes to pixels.
        preprocess_s: seconds from pixels to the graph's input.
        queue_s: seconds of waiting for a lane.
        infer_s: seconds of its run.
        batch_size: pictures in its run.
    """

    probabilities: NDArray[np.float32]
    decode_s: float
    preprocess_s: float
    queue_s: float
    infer_s: float
    batch_size: int


class Answerer(Protocol):
    """Answers image files with one version of a model."""

    async def answer(self, image: bytes, deadline_s: float) -> Answered:
        """Answers one image file.

        Args:
            image: the whole file.
            deadline_s: monotonic seconds; later the picture is not worth running.

        Raises:
            ImageError: the picture is not acceptable.
            ServiceError: it was not answered, and why.
        """
        ...

    def expected_s(self) -> float:
        """Returns in how many seconds a picture that came now would be answered, as far as known.

        0 where nothing is ahead of it, so that an estimate that is too high is corrected.
        """
        ...

"""Statistics of the test pictures and their predictions, as a reference for drift."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contract.manifest import Interface, ReferenceStatistics
from contract.preprocessing import Tensor, read_input
from contract.statistics import PictureStatistics, picture_statistics, reference_statistics
from training.data.pictures import ReadInput


class InputRecorder:
    """Prepares pictures for a `Scorer`, and keeps the statistics of each."""

    def __init__(self, prepare: ReadInput = read_input) -> None:
        self._prepare = prepare
        self._inputs: list[PictureStatistics] = []

    def __call__(self, data: bytes, manifest: Interface) -> Tensor:
        row = self._prepare(data, manifest)
        self._inputs.append(picture_statistics(row, manifest))
        return row

    def reference(self, probabilities: NDArray[np.float32], dataset: str) -> ReferenceStatistics:
        """Returns the statistics of the prepared pictures and of their probabilities, (N, C)."""
        return reference_statistics(self._inputs, probabilities, dataset)

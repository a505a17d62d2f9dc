"""Statistics of inputs and predictions, computed alike for test pictures and for requests.

Shapes: N pictures, S = crop_size_px, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.manifest import Interface, ReferenceStatistics, Rgb
from contract.preprocessing import Tensor

N_BINS: Final = 20
_LUMA: Final = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's mode "L"


@dataclass(frozen=True, slots=True)
class PictureStatistics:
    """Statistics of one prepared picture, for values scaled to 0..1.

    Attributes:
        mean: of each channel, float64, shape (3,).
        mean_square: of each channel, float64, shape (3,).
    """

    mean: NDArray[np.float64]
    mean_square: NDArray[np.float64]

    @property
    def brightness(self) -> float:
        """The mean brightness, 0..1."""
        return float(self.mean @ _LUMA)


def picture_statistics(row: Tensor, manifest: Interface) -> PictureStatistics:
    """Returns the statistics of one row of a graph's input.

    Args:
        row: as from `contract.preprocessing.to_input`.
        manifest: its layout and normalisation are undone.
    """
    channels = row if manifest.graph.input.layout == "NCHW" else row.transpose(2, 0, 1)  # (3, S, S)
    values = channels.reshape(3, -1).astype(np.float64)  # (3, S * S)
    if manifest.preprocessing.in_graph:
        values /= 255
    else:
        spec = manifest.preprocessing
        values = values * np.array(spec.std)[:, None] + np.array(spec.mean)[:, None]
    return PictureStatistics(values.mean(axis=1), np.square(values).mean(axis=1))


def reference_statistics(
    inputs: list[PictureStatistics], probabilities: NDArray[np.float32], dataset: str
) -> ReferenceStatistics:
    """Returns the manifest's `reference` of N pictures.

    Args:
        inputs: N statistics, one for each picture.
        probabilities: float32, shape (N, C).
        dataset: what the pictures are.
    """
    mean = np.mean([one.mean for one in inputs], axis=0)  # (3,)
    mean_square = np.mean([one.mean_square for one in inputs], axis=0)  # (3,)
    variance = np.maximum(mean_square - np.square(mean), 0)
    first = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])  # (C,)
    return ReferenceStatistics(
        dataset=dataset,
        n_images=len(inputs),
        channel_mean=_rgb(mean),
        channel_std=_rgb(np.sqrt(variance)),
        brightness=histogram(np.array([one.brightness for one in inputs])),
        first_class=tuple(first.tolist()),
        confidence=histogram(probabilities.max(axis=1)),
    )


def histogram(values: NDArray[np.floating]) -> tuple[int, ...]:
    """Counts values of 0..1 in N_BINS bins of equal width. The last bin includes 1.

    Values outside are counted in the first or the last bin.
    """
    counts, _ = np.histogram(np.clip(values, 0, 1), bins=N_BINS, range=(0, 1))
    return tuple(counts.tolist())


def _rgb(values: NDArray[np.float64]) -> Rgb:
    red, green, blue = (round(float(value), 5) for value in values)
    return red, green, blue

"""Runs batches on a device with memory of its own, such as a GPU.

A kernel library chooses algorithms and buffers again for every new shape, so only a few batch sizes
are run. A batch is padded to the next size with empty pictures, whose answers are dropped. Each lane
keeps one input buffer on the device for each size (onnxruntime's IO binding). The copy into it blocks
only that lane, so with two lanes one copies while the other computes.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.models.providers import ProviderSession, new_device_value


@dataclass(frozen=True, slots=True)
class TensorNames:
    """The names of a graph's input and of the output to read."""

    input: str
    output: str


def fixed_sizes(sizes: Sequence[int], largest: int) -> tuple[int, ...]:
    return (*(size for size in sorted(sizes) if size < largest), largest)


class DeviceRuns:
    """Runs a session with input buffers on its device. Safe to call from several threads."""

    def __init__(
        self, opened: ProviderSession, device: str, names: TensorNames, sizes: Sequence[int]
    ) -> None:
        self._session = opened.session
        self._device = device
        self._names = names
        self._sizes = tuple(sizes)  # ascending
        self._local = threading.local()  # one set of buffers for each thread

    def warm_up(self, row: NDArray[Any]) -> None:
        # The first run of a shape is slow. No request should pay for it.
        for size in self._sizes:
            self.run(np.stack([row] * size), None)

    def run(self, batch: NDArray[Any], options: Any) -> NDArray[np.float32]:
        """Returns the output, float32 (N, C), for a batch (N, ...) of at most the largest size."""
        size = next(size for size in self._sizes if size >= len(batch))
        value, binding = self._buffer((size, *batch.shape[1:]), batch.dtype)

        if len(batch) < size:
            empty = np.zeros((size - len(batch), *batch.shape[1:]), batch.dtype)
            value.update_inplace(np.concatenate([batch, empty]))
        else:
            value.update_inplace(np.ascontiguousarray(batch))

        self._session.run_with_iobinding(binding, options)
        scores: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]  # (size, C)
        return scores[: len(batch)]

    def _buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, Any]:
        buffers: dict[tuple[int, ...], tuple[Any, Any]]  # input value and binding, by shape
        buffers = self._local.__dict__.setdefault("buffers", {})
        if shape not in buffers:
            value = new_device_value(shape, dtype, self._device)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._names.input, value)
            binding.bind_output(self._names.output, self._device)
            buffers[shape] = value, binding
        return buffers[shape]

"""Runs batches on a device with memory of its own, such as a GPU.

A kernel library chooses its algorithms and its buffers anew for every shape it has not seen, so
only a few batch sizes are ever run: a batch is filled up to the next one with empty pictures, whose
answers are dropped. The input of each size has its place on the device, which every run of a lane
uses again (onnxruntime calls this IO binding); the copy into it blocks that lane alone, so where
there are two, one copies while the other computes.

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
    """The names of a graph's input and of the output that is wanted."""

    input: str
    output: str


def fixed_sizes(sizes: Sequence[int], largest: int) -> tuple[int, ...]:
    """Returns the batch sizes to run: those of `sizes` below `largest`, and `largest`."""
    return (*(size for size in sorted(sizes) if size < largest), largest)


class DeviceRuns:
    """Runs of one session through buffers on its device; safe to call from several threads."""

    def __init__(
        self, opened: ProviderSession, device: str, names: TensorNames, sizes: Sequence[int]
    ) -> None:
        """Prepares; buffers are made when a thread first runs a size.

        Args:
            opened: the session.
            device: onnxruntime's name of the memory, such as "cuda".
            names: of input and output.
            sizes: N of every batch that is run, ascending.
        """
        self._session = opened.session
        self._device = device
        self._names = names
        self._sizes = tuple(sizes)
        self._own = threading.local()

    def warm_up(self, row: NDArray[Any]) -> None:
        """Runs every size once, so that no request is the first of its shape.

        Args:
            row: one picture of the graph's dtype, without the batch axis.
        """
        for size in self._sizes:
            self.run(np.stack([row] * size), None)

    def run(self, batch: NDArray[Any], options: Any) -> NDArray[np.float32]:
        """Runs the network once.

        Args:
            batch: shape (N, ...), N no more than the largest size.
            options: onnxruntime's RunOptions, or None.

        Returns:
            The output, float32, shape (N, C).
        """
        size = next(size for size in self._sizes if size >= len(batch))
        value, binding = self._bound((size, *batch.shape[1:]), batch.dtype)
        if len(batch) < size:
            empty = np.zeros((size - len(batch), *batch.shape[1:]), batch.dtype)
            value.update_inplace(np.concatenate([batch, empty]))
        else:
            value.update_inplace(np.ascontiguousarray(batch))
        self._session.run_with_iobinding(binding, options)
        scores: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return scores[: len(batch)]

    def _bound(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Any, Any]:
        """Returns this thread's input of a shape and the binding that reads it."""
        buffers: dict[tuple[int, ...], tuple[Any, Any]]
        buffers = self._own.__dict__.setdefault("buffers", {})
        if shape not in buffers:
            value = new_device_value(shape, dtype, self._device)
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(self._names.input, value)
            binding.bind_output(self._names.output, self._device)
            buffers[shape] = value, binding
        return buffers[shape]

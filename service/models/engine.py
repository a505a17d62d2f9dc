"""Runs a graph on batches of prepared pictures. `Engine` is the seam that tests replace with a fake.

Shapes: N pictures, C classes. A batch is a stack of rows from `contract.preprocessing.to_input`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from contract.errors import GraphMismatch
from contract.manifest import Manifest
from contract.predictions import to_probabilities
from service.models.device import DeviceRuns, TensorNames, fixed_sizes
from service.models.providers import PROVIDERS, ProviderSession, run_options

Batch = NDArray[Any]


class Run:
    """One run of an engine: how it runs, and a way to interrupt it.

    Attributes:
        all_cores: the run may use all cores because it is alone.
        interrupted: `interrupt` was called.
    """

    __slots__ = ("_terminate", "all_cores", "interrupted")

    def __init__(self, *, all_cores: bool = False) -> None:
        self.all_cores = all_cores
        self.interrupted = False
        self._terminate: Callable[[], None] | None = None

    def on_interrupt(self, terminate: Callable[[], None]) -> None:
        """Sets the callback that ends the run. Calls it now if the run was interrupted already."""
        self._terminate = terminate  # before the check: `interrupt` comes from another thread
        if self.interrupted:
            terminate()

    def interrupt(self) -> None:
        """Ends the run early. Can be called from any thread, also before the run starts."""
        self.interrupted = True
        if self._terminate is not None:
            self._terminate()


class Engine(Protocol):
    """Turns a batch of prepared pictures into probabilities."""

    def run(self, batch: Batch, run: Run) -> NDArray[np.float32]:
        """Runs the network once. Blocks; safe to call from several threads.

        Args:
            batch: shape (N, ...), dtype and layout as in the manifest's `graph.input`.
            run: how to run. An interrupted run raises.

        Returns:
            Probabilities, float32, shape (N, C), row i for picture i.
        """
        ...


class OnnxEngine:
    """Runs a graph with one onnxruntime session, or with two that differ in their threads."""

    def __init__(
        self,
        opened: ProviderSession,
        manifest: Manifest,
        all_cores: ProviderSession | None = None,
        *,
        largest_batch: int = 1,
    ) -> None:
        """Checks the graph's signature; raises GraphMismatch if it differs from the manifest.

        `all_cores` is a second session with all cores, for runs that are alone.
        """
        self._session = opened.session
        self._all_cores = (all_cores or opened).session
        self._manifest = manifest
        self._new_options = run_options()
        self._answers_logits = manifest.graph.scores.kind == "logits"
        self._outputs = [manifest.graph.scores.name]
        self._input = manifest.graph.input.name
        _check_input(self._session, manifest)
        _check_outputs(self._session, manifest)

        provider = PROVIDERS[opened.provider]
        self._on_device: DeviceRuns | None = None
        if provider.device is not None:
            sizes = fixed_sizes(
                () if manifest.graph.fixed_batch_size else provider.batch_sizes, largest_batch
            )
            names = TensorNames(self._input, self._outputs[0])
            self._on_device = DeviceRuns(opened, provider.device, names, sizes)

    def warm_up(self) -> None:
        if self._on_device is not None:
            graph_input = self._manifest.graph.input
            self._on_device.warm_up(np.zeros(graph_input.shape[1:], graph_input.dtype))

    def run(self, batch: Batch, run: Run | None = None) -> NDArray[np.float32]:
        run = run or Run()
        options = self._new_options()
        run.on_interrupt(partial(setattr, options, "terminate", True))

        if self._on_device is not None:
            scores = self._on_device.run(batch, options)
        else:
            session = self._all_cores if run.all_cores else self._session
            (scores,) = session.run(self._outputs, {self._input: batch}, options)  # (N, C)
        return to_probabilities(scores, self._manifest) if self._answers_logits else scores


def _check_input(session: Any, manifest: Manifest) -> None:
    declared = manifest.graph.input
    inputs = session.get_inputs()
    if [node.name for node in inputs] != [declared.name]:
        found = ", ".join(node.name for node in inputs)
        raise GraphMismatch(f"the graph's inputs are {found}, the manifest says {declared.name}")

    element = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}.get(inputs[0].type)
    if element != declared.dtype:
        raise GraphMismatch(f"the input is {inputs[0].type}, the manifest says {declared.dtype}")

    shape = inputs[0].shape
    agrees = len(shape) == len(declared.shape) and all(
        # A symbolic side accepts any size. A symbolic batch axis must be null in the manifest.
        actual == expected if isinstance(actual, int) else position > 0 or expected is None
        for position, (actual, expected) in enumerate(zip(shape, declared.shape, strict=True))
    )
    if not agrees:
        raise GraphMismatch(f"the input's shape is {shape}, the manifest says {declared.shape}")


def _check_outputs(session: Any, manifest: Manifest) -> None:
    outputs = {node.name: node for node in session.get_outputs()}
    for declared in manifest.graph.outputs:
        if declared.name not in outputs:
            raise GraphMismatch(f"the graph has no output {declared.name!r}")

    scores = outputs[manifest.graph.scores.name]
    n_classes = scores.shape[-1] if scores.shape else None
    if isinstance(n_classes, int) and n_classes != manifest.n_classes:
        raise GraphMismatch(
            f"the graph returns {n_classes} classes, the manifest has {manifest.n_classes} labels"
        )

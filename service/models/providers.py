"""Opens a graph on an execution provider; with `engine`, the only place that knows onnxruntime.

`auto` walks `PROVIDERS` in order and takes the first that really runs; what it passed over and why
is kept and shown. A provider asked for by name is used or the service does not start.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, TypeVar

from contract.errors import GraphMismatch
from contract.telemetry import disable_runtime_telemetry
from service.errors import ProviderNotInstalled, ProviderUnavailable

Proven = TypeVar("Proven")


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider.

    Attributes:
        runtime_name: its name in onnxruntime.
        options: what it is opened with.
        default_lanes: runs at the same time; None for one on each usable core.
        largest_batch: pictures in one run at most, where nothing else is configured.
        preload: its libraries come in packages of their own and are loaded first.
        device: onnxruntime's name of its memory; None where it shares the processor's.
        batch_sizes: the only ones that are run, besides the largest; empty for any.
    """

    runtime_name: str
    options: dict[str, str]
    default_lanes: int | None = None
    largest_batch: int = 8
    preload: bool = False
    device: str | None = None
    batch_sizes: tuple[int, ...] = ()

    @property
    def runs_on_cores(self) -> bool:
        """Whether its runs compete with decoding for the processor's cores."""
        return self.default_lanes is None


PROVIDERS: Final[dict[str, Provider]] = {
    # Exhaustive search would make every new batch size slow; TF32 would change the answers.
    "cuda": Provider(
        "CUDAExecutionProvider",
        {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"},
        default_lanes=1,
        largest_batch=32,
        preload=True,
        device="cuda",
        batch_sizes=(1, 2, 4, 8, 16, 32),
    ),
    "cpu": Provider("CPUExecutionProvider", {}),
}
"""Every provider, the preferred ones first; the last one runs everywhere."""

_LAST_RESORT: Final = next(reversed(PROVIDERS))


@dataclass(frozen=True, slots=True)
class ProviderFallback:
    """Why a preferred provider was passed over.

    Attributes:
        kind: `not_installed` where this onnxruntime was built without it, which nobody needs to be
            woken for; `failed` where it is installed and does not work.
        reason: one line for people.
    """

    kind: Literal["not_installed", "failed"]
    reason: str


@dataclass(frozen=True, slots=True)
class ProviderSession:
    """An open session and the name of the provider it runs on."""

    session: Any
    provider: str


def on_chosen_provider(
    choice: str, prove: Callable[[str], Proven]
) -> tuple[Proven, ProviderFallback | None]:
    """Tries providers as the choice says and returns what the first that works gives.

    Args:
        choice: `auto` or a key of `PROVIDERS`.
        prove: opens and proves a version on the named provider.

    Returns:
        Its result, and why a preferred provider was passed over, if one was.

    Raises:
        ProviderUnavailable: the provider asked for by name does not work here.
    """
    if choice != "auto":
        return prove(choice), None
    fallback: ProviderFallback | None = None
    for name in PROVIDERS:
        if name == _LAST_RESORT:
            break
        try:
            return prove(name), fallback
        except ProviderNotInstalled as error:
            fallback = fallback or ProviderFallback("not_installed", str(error))
        except ProviderUnavailable as error:
            fallback = ProviderFallback("failed", str(error))
    return prove(_LAST_RESORT), fallback


def open_session(
    graph: bytes, name: str, *, threads: int, spinning: bool = False
) -> ProviderSession:
    """Opens a graph on one provider.

    Args:
        graph: the ONNX file's bytes, whose digest has been checked.
        name: a key of `PROVIDERS`.
        threads: threads inside one run.
        spinning: they wait for each other without sleeping while a run lasts. A run that has the
            cores to itself is a quarter faster so; beside others it would take their time.

    Raises:
        ProviderUnavailable: the provider cannot be used here.
        GraphMismatch: onnxruntime cannot load the graph.
    """
    return ProviderSession(_open(graph, name, threads, spinning=spinning), name)


def _open(graph: bytes, name: str, threads: int, *, spinning: bool) -> Any:
    ort = runtime()
    provider = PROVIDERS[name]
    if provider.runtime_name not in ort.get_available_providers():
        raise ProviderNotInstalled(f"{name}: this onnxruntime has no {provider.runtime_name}")
    if provider.preload and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds the CUDA libraries that PyPI packages carry
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # By default they go on spinning after a run, which burns a core while idle.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Only the bytes that were checked may run: weights in other files are found nowhere.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    try:
        session = ort.InferenceSession(
            graph, options, providers=[(provider.runtime_name, provider.options)]
        )
    except Exception as error:
        if name == _LAST_RESORT:
            raise GraphMismatch("onnxruntime cannot load the graph") from error
        raise ProviderUnavailable(f"{name}: {_first_line(error)}") from error
    if session.get_providers()[0] != provider.runtime_name:
        # onnxruntime warns and quietly goes on with the CPU when a provider's libraries are missing
        raise ProviderUnavailable(f"{name}: its libraries or its device are missing")
    return session


def run_options() -> Callable[[], Any]:
    """Returns what makes onnxruntime's options of a run; setting `terminate` on them ends it."""
    made: Callable[[], Any] = runtime().RunOptions
    return made


def new_device_value(shape: tuple[int, ...], dtype: Any, device: str) -> Any:
    """Returns an onnxruntime value of a shape and NumPy dtype in a device's memory."""
    return runtime().OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)


@cache
def runtime() -> Any:
    """Returns onnxruntime, imported at the first call, when its usage reporting is off."""
    disable_runtime_telemetry()  # an embedding program may not have come through our entry points
    import onnxruntime

    return onnxruntime


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]

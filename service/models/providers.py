"""Opens a graph on an execution provider. Only this folder knows onnxruntime.

`auto` takes the first of `PROVIDERS` that works and keeps the reason why the others did not. A provider
that is configured by name must work, or the service does not start.
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

Opened = TypeVar("Opened")


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider.

    Attributes:
        runtime_name: its name in onnxruntime.
        options: its options in onnxruntime.
        default_lanes: number of runs at the same time; None for one on each usable core.
        largest_batch: most pictures in one run, unless configured otherwise.
        preload: its libraries come in separate packages and must be loaded first.
        device: its memory's name in onnxruntime, such as "cuda"; None for main memory.
        batch_sizes: the batch sizes to run besides the largest; empty for any.
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
        """Whether its runs compete with decoding for the CPU cores."""
        return self.default_lanes is None


PROVIDERS: Final[dict[str, Provider]] = {
    # An exhaustive search would make every new batch size slow. TF32 would change the answers.
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
"""All providers in order of preference. The last one works everywhere."""

_LAST_RESORT: Final = next(reversed(PROVIDERS))


@dataclass(frozen=True, slots=True)
class ProviderFallback:
    """Why a preferred provider is not used.

    Attributes:
        kind: `not_installed` if this onnxruntime was built without it, which is no reason for an
            alert; `failed` if it is installed but does not work.
        reason: one line for people.
    """

    kind: Literal["not_installed", "failed"]
    reason: str


@dataclass(frozen=True, slots=True)
class ProviderSession:
    """An open session and the name of the provider it runs on."""

    session: Any
    provider: str


def try_providers(
    choice: str, open_on: Callable[[str], Opened]
) -> tuple[Opened, ProviderFallback | None]:
    """Opens a version on the chosen provider, or for `auto` on the first that works.

    Args:
        choice: `auto` or a key of `PROVIDERS`.
        open_on: opens and verifies the version on the named provider.

    Returns:
        The result of `open_on`, and why a preferred provider is not used, if there is one.

    Raises:
        ProviderUnavailable: the provider configured by name does not work here.
    """
    if choice != "auto":
        try:
            return open_on(choice), None
        except ProviderNotInstalled as error:
            raise ProviderNotInstalled(
                f"{error}; install onnxruntime-gpu in place of onnxruntime (see GPU in the README), or "
                f"use --provider {_LAST_RESORT}"
            ) from error

    fallback: ProviderFallback | None = None
    for name in PROVIDERS:
        if name == _LAST_RESORT:
            break
        try:
            return open_on(name), fallback
        except ProviderNotInstalled as error:  # a failure is the more important reason to keep
            fallback = fallback or ProviderFallback("not_installed", str(error))
        except ProviderUnavailable as error:
            fallback = ProviderFallback("failed", str(error))
    return open_on(_LAST_RESORT), fallback


def open_session(
    graph: bytes, name: str, *, threads: int, spinning: bool = False
) -> ProviderSession:
    """Opens a graph, whose digest is verified, on the provider `name`, with `threads` for each run.

    `spinning` threads wait for each other without sleeping. This makes a run that is alone a quarter
    faster. Next to other runs it would take their time.

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
        ort.preload_dlls()  # finds the CUDA libraries in PyPI packages

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # By default threads keep spinning after a run, which keeps a core busy while idle.
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # By default a session allocates one block for a whole run and plans it for each batch size. The
    # blocks of different sizes do not fit into each other's space, and the runs are not faster.
    options.enable_mem_pattern = provider.device is not None
    # Only verified bytes may run, so weights in other files must not be found.
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
        # If a provider's libraries are missing, onnxruntime only warns and uses the CPU.
        raise ProviderUnavailable(f"{name}: its libraries or its device are missing")
    return session


def run_options() -> Callable[[], Any]:
    """Returns the factory of onnxruntime's RunOptions. Setting `terminate` on them ends the run."""
    made: Callable[[], Any] = runtime().RunOptions
    return made


def new_device_value(shape: tuple[int, ...], dtype: Any, device: str) -> Any:
    return runtime().OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)


@cache
def runtime() -> Any:
    disable_runtime_telemetry()  # before the import, for programs without our entry points
    import onnxruntime

    return onnxruntime


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]

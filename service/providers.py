"""Opens a graph on an execution provider; with `engine`, the only place that knows onnxruntime.

`auto` walks the providers of `AUTO_ORDER` and takes the first that really runs; what it passed over
and why is kept and shown. A provider asked for by name is used or the service does not start.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

from contract.errors import GraphMismatch
from contract.telemetry import disable_runtime_telemetry
from service.errors import ProviderNotInstalled, ProviderUnavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Provider:
    """One execution provider: its name in onnxruntime and the options it is opened with."""

    runtime_name: str
    options: dict[str, str]
    default_lanes: int | None  # None: one lane per usable core
    preload: bool = False


PROVIDERS: Final[dict[str, Provider]] = {
    "cpu": Provider("CPUExecutionProvider", {}, default_lanes=None),
    # Exhaustive search would make every new batch size slow; TF32 would change the answers.
    "cuda": Provider(
        "CUDAExecutionProvider",
        {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"},
        default_lanes=1,
        preload=True,
    ),
}
AUTO_ORDER: Final = ("cuda", "cpu")


@dataclass(frozen=True, slots=True)
class ProviderSession:
    """An open session, the provider it runs on and why a preferred one was passed over."""

    session: Any
    provider: str
    fallback_reason: str | None


def open_session(graph: bytes, choice: str, *, threads: int) -> ProviderSession:
    """Opens a graph on the chosen provider.

    Args:
        graph: the ONNX file's bytes, whose digest has been checked.
        choice: `auto` or a key of `PROVIDERS`.
        threads: threads inside one run.

    Raises:
        ProviderUnavailable: the provider asked for by name cannot be used here.
        GraphMismatch: onnxruntime cannot load the graph.
    """
    if choice != "auto":
        return ProviderSession(_open(graph, choice, threads), choice, None)
    passed_over: list[str] = []
    for name in AUTO_ORDER[:-1]:
        try:
            session = _open(graph, name, threads)
        except ProviderNotInstalled as error:
            passed_over.append(str(error))  # nobody expects a GPU of a runtime built without it
        except ProviderUnavailable as error:
            passed_over.append(str(error))
            log.warning("execution provider passed over", extra={"reason": str(error)})
        else:
            return ProviderSession(session, name, "; ".join(passed_over) or None)
    last = AUTO_ORDER[-1]
    return ProviderSession(_open(graph, last, threads), last, "; ".join(passed_over) or None)


def _open(graph: bytes, name: str, threads: int) -> Any:
    runtime = _import_runtime()
    provider = PROVIDERS[name]
    if provider.runtime_name not in runtime.get_available_providers():
        raise ProviderNotInstalled(f"{name}: this onnxruntime has no {provider.runtime_name}")
    if provider.preload and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # finds the CUDA libraries that PyPI packages carry
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads burn a core while idle and fight the decoder for it under load.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = runtime.InferenceSession(
            graph, options, providers=[(provider.runtime_name, provider.options)]
        )
    except Exception as error:
        if name == "cpu":
            raise GraphMismatch("onnxruntime cannot load the graph") from error
        raise ProviderUnavailable(f"{name}: {_first_line(error)}") from error
    if session.get_providers()[0] != provider.runtime_name:
        # onnxruntime warns and quietly goes on with the CPU when a provider's libraries are missing
        raise ProviderUnavailable(f"{name}: its libraries or its device are missing")
    return session


def _import_runtime() -> Any:
    disable_runtime_telemetry()
    import onnxruntime

    return onnxruntime


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]

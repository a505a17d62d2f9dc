from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contract.errors import GraphMismatch
from service.errors import ProviderNotInstalled, ProviderUnavailable
from service.models import providers
from service.models.providers import (
    PROVIDERS,
    ProviderFallback,
    ProviderSession,
    open_session,
    try_providers,
)
from tests import tinymodel

GRAPH = tinymodel.graph()
ROOT = Path(__file__).parents[3]


class FakeRuntime:
    """The part of onnxruntime that opens a session."""

    def __init__(self, available: list[str], selects: str, fails_on: str = "") -> None:
        self.available = available
        self.selects = selects
        self.fails_on = fails_on
        self.preloaded = 0
        self.entries: dict[str, str] = {}
        self.requested: list[tuple[str, dict[str, str]]] = []

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        self.preloaded += 1

    def SessionOptions(self) -> FakeRuntime:  # noqa: N802 - onnxruntime's name
        return self

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value

    def InferenceSession(self, _graph: bytes, _options: Any, providers: Any) -> FakeRuntime:  # noqa: N802
        self.requested = providers
        if providers[0][0] == self.fails_on:
            raise RuntimeError("no kernel image\nsecond line")
        return self

    def get_providers(self) -> list[str]:
        return [self.selects, "CPUExecutionProvider"]


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def runtime(monkeypatch):
    def install(*args: Any, **kwargs: Any) -> FakeRuntime:
        fake = FakeRuntime(*args, **kwargs)
        monkeypatch.setattr(providers, "runtime", lambda: fake)
        return fake

    return install


def session_on(choice: str) -> tuple[ProviderSession, ProviderFallback | None]:
    return try_providers(choice, lambda name: open_session(GRAPH, name, threads=1))


def test_providers_cpu_opens_a_graph():
    opened = open_session(GRAPH, "cpu", threads=1)

    assert opened.provider == "cpu"
    assert opened.session.get_providers()[0] == CPU


def test_providers_auto_without_cuda_falls_back_and_gives_the_reason(runtime):
    runtime([CPU], selects=CPU)

    opened, fallback = session_on("auto")

    reason = "cuda: this onnxruntime has no CUDAExecutionProvider"
    assert (opened.provider, fallback) == ("cpu", ProviderFallback("not_installed", reason))


def test_providers_auto_with_cuda_uses_it(runtime):
    runtime([CUDA, CPU], selects=CUDA)

    opened, fallback = session_on("auto")

    assert (opened.provider, fallback) == ("cuda", None)


@pytest.mark.parametrize(
    ("fails_on", "reason"),
    [("", "its libraries or its device are missing"), (CUDA, "no kernel image")],
    ids=["silently_on_cpu", "raises"],
)
def test_providers_auto_with_broken_cuda_falls_back_and_gives_the_reason(runtime, fails_on, reason):
    runtime([CUDA, CPU], selects=CPU, fails_on=fails_on)

    opened, fallback = session_on("auto")

    assert (opened.provider, fallback) == ("cpu", ProviderFallback("failed", f"cuda: {reason}"))


def test_providers_auto_skips_a_provider_that_gives_wrong_answers():
    def open_on(name: str) -> str:
        if name == "cuda":
            raise ProviderUnavailable("cuda: wrong answers")
        return name

    assert try_providers("auto", open_on) == (
        "cpu",
        ProviderFallback("failed", "cuda: wrong answers"),
    )


def test_providers_auto_keeps_the_first_reason_unless_a_later_one_failed(monkeypatch):
    rows = dict.fromkeys(("a", "b", "c", "cpu"), PROVIDERS["cpu"])
    monkeypatch.setattr(providers, "PROVIDERS", rows)
    errors: dict[str, ProviderUnavailable] = {
        "a": ProviderNotInstalled("a"),
        "b": ProviderNotInstalled("b"),
    }

    def open_on(name: str) -> str:
        if name in errors:
            raise errors[name]
        return name

    first = try_providers("auto", open_on)
    errors["c"] = ProviderUnavailable("c")

    assert first == ("c", ProviderFallback("not_installed", "a"))
    assert try_providers("auto", open_on) == ("cpu", ProviderFallback("failed", "c"))


def test_providers_cuda_by_name_without_it_refused(runtime):
    runtime([CPU], selects=CPU)

    with pytest.raises(ProviderNotInstalled, match=r"cuda: .*onnxruntime-gpu.*--provider cpu"):
        session_on("cuda")


def test_providers_cuda_by_name_silently_on_cpu_refused(runtime):
    runtime([CUDA, CPU], selects=CPU)

    with pytest.raises(ProviderUnavailable, match="libraries or its device"):
        session_on("cuda")


@pytest.mark.parametrize("name", PROVIDERS)
def test_providers_every_row_opened_with_its_own_name_and_options(runtime, name):
    row = PROVIDERS[name]
    fake = runtime([row.runtime_name], selects=row.runtime_name)

    opened = open_session(GRAPH, name, threads=3)

    assert opened.provider == name
    assert fake.requested == [(row.runtime_name, row.options)]
    assert vars(fake)["enable_mem_pattern"] is (row.device is not None)
    assert fake.preloaded == int(row.preload)
    assert vars(fake)["intra_op_num_threads"] == 3
    assert fake.entries["session.intra_op.allow_spinning"] == "0"


@pytest.mark.parametrize(("spinning", "entry"), [(True, "1"), (False, "0")], ids=["spin", "sleep"])
def test_providers_spinning_reaches_the_session_and_always_ends_with_the_run(
    runtime, spinning, entry
):
    fake = runtime([CPU], selects=CPU)

    open_session(GRAPH, "cpu", threads=2, spinning=spinning)

    assert fake.entries["session.intra_op.allow_spinning"] == entry
    assert fake.entries["session.force_spinning_stop"] == "1"


def test_providers_last_row_is_the_cpu():
    assert [*PROVIDERS][-1] == "cpu"


@pytest.mark.parametrize("graph", [b"", b"noise", GRAPH[:100]], ids=["empty", "noise", "cut"])
def test_providers_graph_that_cannot_be_read_refused(graph):
    with pytest.raises(GraphMismatch, match="cannot load"):
        open_session(graph, "cpu", threads=1)


_AUDITED = """
import os, sys
seen, outside = [], []
def hook(event, args):
    if event == "import" and args[0] == "onnxruntime":
        seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "subprocess.Popen"):
        outside.append(event)
sys.addaudithook(hook)
assert "onnxruntime" not in sys.modules
try:
    {enter}
finally:
    print("REPORT", seen, outside)
"""


def test_providers_embedding_program_imports_the_runtime_with_telemetry_off(models_dir):
    """`uvicorn service.app:create_app` does not go through the `convserve` command."""
    code = _AUDITED.format(
        enter="from service.app import create_app; from service.settings import Settings; "
        f"create_app(Settings(models_dir={str(models_dir)!r}, lanes=1))"
    )

    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "0"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.splitlines()[-1:] == ["REPORT ['1'] []"], done.stderr


def test_providers_run_does_not_change_the_environment(monkeypatch):
    """Native code on another thread could be reading the environment."""
    providers.runtime()
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")

    providers.run_options()()

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"


def test_providers_classifying_reaches_no_network_and_writes_no_file(models_dir, tmp_path):
    picture, home = tmp_path / "red.png", tmp_path / "home"
    picture.write_bytes(tinymodel.picture("red"))
    home.mkdir()
    code = _AUDITED.format(
        enter="from convserve.commands import convserve; convserve(sys.argv[1:], standalone_mode=False)"
    )

    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, "classify", str(picture), "--models-dir", str(models_dir)],
        env={"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "red" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "REPORT ['1'] []"
    assert list(home.rglob("*")) == []

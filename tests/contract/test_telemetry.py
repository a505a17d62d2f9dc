import os
from types import MappingProxyType

from contract.telemetry import disable_runtime_telemetry


def test_disable_runtime_telemetry_overrides_the_environment(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")

    disable_runtime_telemetry()

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_disable_runtime_telemetry_writes_only_what_is_not_there(monkeypatch):
    with monkeypatch.context() as patched:  # pytest writes to the environment behind each test
        # Raises TypeError on a write.
        patched.setattr(os, "environ", MappingProxyType({"ORT_DISABLE_TELEMETRY": "1"}))

        disable_runtime_telemetry()

import os

from contract.telemetry import disable_runtime_telemetry


def test_disable_runtime_telemetry_overrides_the_environment(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")

    disable_runtime_telemetry()

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"

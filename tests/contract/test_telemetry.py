import os

from contract.telemetry import disable_runtime_telemetry


def test_disable_runtime_telemetry_overrides_the_environment(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")

    disable_runtime_telemetry()

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_disable_runtime_telemetry_writes_only_what_is_not_there(monkeypatch):
    written: list[str] = []

    class Environment(dict[str, str]):
        def __setitem__(self, name: str, value: str) -> None:
            written.append(name)
            super().__setitem__(name, value)

    with monkeypatch.context() as patched:  # pytest writes to the environment behind each test
        patched.setattr(os, "environ", Environment())

        disable_runtime_telemetry()
        disable_runtime_telemetry()

    assert written == ["ORT_DISABLE_TELEMETRY"]

import os

import pytest

from training.evaluation import session


@pytest.mark.parametrize("module", [session.runtime, session.quantization, session.float16])
def test_runtime_module_is_imported_once_after_its_telemetry_is_off(module, monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    session._imported.cache_clear()

    first = module()

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert module() is first
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"

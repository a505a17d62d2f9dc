"""Shared fixtures: a model repository, test clients, a clean environment and logging."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from contract.telemetry import disable_runtime_telemetry
from service.app import create_app
from service.settings import ENVIRONMENT_PREFIX, Settings
from tests import tinymodel

MakeClient = Callable[..., TestClient]

disable_runtime_telemetry()

SLOW_PARTS = ("clients", "corpora", "docker", "faults", "monitoring", "portability", "release")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the end-to-end tests by their folder, and tests of slow parts as slow."""
    for item in items:
        if "e2e" in item.path.parent.parts:
            item.add_marker(pytest.mark.e2e)
        if any(item.get_closest_marker(part) for part in SLOW_PARTS):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(ENVIRONMENT_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Restores the root logger and uvicorn's loggers, which the service reconfigures."""
    loggers = [logging.getLogger(name) for name in ("", "uvicorn", "uvicorn.error", "uvicorn.asgi")]
    before = [(one.handlers[:], one.level, one.propagate) for one in loggers]

    yield

    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers[:], one.level, one.propagate = handlers, level, propagate
        one.setLevel(level)


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Keeps the garbage collector from running, so that only reference counts free objects."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with versions 1 and 2 of `tiny`. Tests must not change it."""
    directory = tmp_path_factory.mktemp("models")
    for version in (1, 2):
        tinymodel.write_version(directory, version=version)
    return directory


@pytest.fixture
def make_client(models_dir: Path) -> Iterator[MakeClient]:
    """Creates a client of a started application with the given settings."""
    with ExitStack() as stack:

        def make(**settings: object) -> TestClient:
            lanes = {} if settings.get("workers") else {"lanes": 1}
            values = {"models_dir": models_dir, **lanes, **settings}
            app = create_app(Settings.model_validate(values))
            return stack.enter_context(TestClient(app, follow_redirects=False))

        yield make


@pytest.fixture
def fresh_client(make_client: MakeClient) -> TestClient:
    """A client of its own application, for tests that count requests or change state."""
    return make_client()


@pytest.fixture(scope="session")
def client(models_dir: Path) -> Iterator[TestClient]:
    """A client of an application that all tests share. Tests must not change its state."""
    app = create_app(Settings(models_dir=models_dir, lanes=1))
    with TestClient(app, follow_redirects=False) as shared:
        yield shared

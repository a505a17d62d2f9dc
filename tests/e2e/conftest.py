"""Servers for the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.server import Server, running_server

StartServer = Callable[..., Server]


@pytest.fixture
def launch(models_dir: Path, tmp_path: Path) -> Iterator[StartServer]:
    """Launches a server with the given settings, without waiting for it. Stops it after the test."""
    with ExitStack() as stack:

        def make(**settings: object) -> Server:
            home = tmp_path / f"home-{len(list(tmp_path.iterdir()))}"
            home.mkdir()
            lanes = {} if settings.get("workers") else {"lanes": 1}
            server = Server(home, **({"models_dir": models_dir} | lanes | settings))
            stack.callback(server.stop)
            return server

        yield make


@pytest.fixture
def start_server(launch: StartServer) -> StartServer:
    """Starts a server with the given settings and waits until it serves."""
    return lambda **settings: launch(**settings).start()


@pytest.fixture(scope="module")
def server(models_dir: Path) -> Iterator[Server]:
    """One server for all tests of a module. Tests must not change its state."""
    limits = {"receive_timeout_s": 0.3, "max_body_bytes": 100_000}
    with running_server(models_dir=models_dir, lanes=1, **limits) as running:
        yield running

"""Shared fixtures: a tiny network, its graph, and folders of one-colour pictures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from tests.training.helpers import tinynet
from training.__main__ import main
from training.data.pictures import Picture
from training.export import gate as precision_gate
from training.release import gates as gates
from training.release import timm as timm_import

Import = Callable[..., Result]


@pytest.fixture(autouse=True)
def _capture_training_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "training")


@pytest.fixture(scope="session")
def tiny_graph() -> bytes:
    return tinynet.exported()


@pytest.fixture(scope="session")
def colours_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each class with four pictures each. Tests must not change it."""
    root = tmp_path_factory.mktemp("colours")
    for name in tinynet.NAMES:
        (root / name).mkdir()
        for i, kind in enumerate(("PNG", "JPEG", "PNG", "JPEG")):
            data = tinynet.picture(name, i, (50 + 9 * i, 80 - 11 * i), kind)
            (root / name / f"{name}{i}.{kind.lower()}").write_bytes(data)
    return root


@pytest.fixture(scope="session")
def inputs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels and weights of the tiny network as files. Tests must not change them."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "labels.txt").write_text("\n".join(tinynet.NAMES))
    save_file(tinynet.TinyNet().state_dict(), root / "tiny.safetensors")
    return root


@pytest.fixture
def colour_pictures() -> list[Picture]:
    return [
        Picture(f"{name}{i}.png", tinynet.picture(name, i), index)
        for index, name in enumerate(tinynet.NAMES)
        for i in range(3)
    ]


@pytest.fixture
def run_import(
    tmp_path: Path,
    colours_dir: Path,
    inputs_dir: Path,
    tiny_graph: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> Import:
    """Runs `convserve-train import` of the tiny network into an empty model repository.

    Flags override the defaults. None leaves a flag out, and True passes it without a value. The
    exporter takes seconds, so a stored result replaces it. A test that needs the real one sets
    `gates.export` back to `training.export.export.export`.
    """
    tinynet.register()
    monkeypatch.setattr(gates, "export", lambda *_: tiny_graph)
    monkeypatch.setattr(timm_import, "_N_PARITY", 8)
    monkeypatch.setattr(precision_gate, "_N_HELD_OUT", 16)

    def run(source: str = tinynet.ARCHITECTURE, **flags: object) -> Result:
        defaults: dict[str, object] = {
            "weights": inputs_dir / "tiny.safetensors",
            "labels": inputs_dir / "labels.txt",
            "license": "CC0-1.0",
            "models": tmp_path / "models",
            "name": "tiny",
            "golden": colours_dir,
            "evaluate": colours_dir,
            "max_batch": 8,
            "calibration": colours_dir,
        }

        arguments = ["import", source]
        for key, value in {**defaults, **flags}.items():
            if value is not None and value is not False:
                arguments.append(f"--{key.replace('_', '-')}")
                arguments += [] if value is True else [str(value)]

        return CliRunner().invoke(main, arguments, catch_exceptions=False)

    return run

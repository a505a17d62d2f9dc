"""Clients generated from the service's OpenAPI document classify a picture.

The generators come from PyPI and npm, into folders of their own. Without network or Node.js the
tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import ROOT, Server, running_server

HERE = Path(__file__).parent
CAT = ROOT / "examples" / "cat.jpg"
NO_PICTURE = HERE / "package.json"
EGYPTIAN_CAT = ["Egyptian cat", pytest.approx(0.79, abs=0.05)]
NODE = all(shutil.which(program) for program in ("node", "npm"))

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

Done = subprocess.CompletedProcess[str]


def run(folder: Path, command: Sequence[object]) -> Done:
    """Runs a command in a folder, whose programs it may use."""
    path = os.pathsep.join([str(folder / "venv/bin"), os.environ["PATH"]])
    return subprocess.run(  # noqa: S603
        [str(one) for one in command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )


def install(folder: Path, command: Sequence[object]) -> None:
    done = run(folder, command)
    if done.returncode:
        lines = (done.stderr + done.stdout).splitlines()
        reason = next((line for line in lines if "error" in line.lower()), "")
        pytest.skip(f"the generator cannot be installed: {reason}")


def printed(done: Done) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.fixture(scope="module")
def python_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with openapi-python-client in its virtual environment."""
    folder = tmp_path_factory.mktemp("python")
    install(folder, [sys.executable, "-m", "venv", "venv"])
    pip = ("venv/bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    install(folder, [*pip, "-r", HERE / "requirements.txt"])
    return folder


@pytest.fixture(scope="module")
def node_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with openapi-typescript, openapi-fetch and TypeScript in its node_modules."""
    if not NODE:
        pytest.skip("Node.js or npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    shutil.copy(HERE / "package.json", folder)
    install(folder, ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"])
    return folder


def test_clients_python_is_generated_without_a_warning_and_classifies(server, python_tools):
    document = f"{server.url}/openapi.json"
    options = ("--output-path", "generated", "--meta", "none", "--fail-on-warning")

    generated = run(
        python_tools, ["openapi-python-client", "generate", "--url", document, *options]
    )
    assert (generated.returncode, generated.stderr) == (0, "")
    shutil.copy(HERE / "classify.py", python_tools)
    answers = run(python_tools, ["venv/bin/python", "classify.py", server.url, CAT, NO_PICTURE])

    assert printed(answers) == {
        "raw": EGYPTIAN_CAT,
        "files": EGYPTIAN_CAT,
        "json": EGYPTIAN_CAT,
        "broken": "unsupported_media_type",
    }


def test_clients_typescript_is_generated_without_a_warning_and_classifies(server, node_tools):
    document = f"{server.url}/openapi.json"
    strict = ("--strict", "--noEmitOnError", "--module", "nodenext", "--target", "es2022")

    generated = run(node_tools, ["npx", "openapi-typescript", document, "-o", "schema.d.ts"])
    assert (generated.returncode, generated.stderr) == (0, "")
    shutil.copy(HERE / "classify.ts", node_tools)
    compiled = run(node_tools, ["npx", "tsc", *strict, "classify.ts"])
    assert (compiled.returncode, compiled.stdout) == (0, "")
    answers = run(node_tools, ["node", "classify.js", server.url, CAT, NO_PICTURE])

    assert printed(answers) == {
        "raw": EGYPTIAN_CAT,
        "files": EGYPTIAN_CAT,
        "json": EGYPTIAN_CAT,
        "broken": "unsupported_media_type",
    }

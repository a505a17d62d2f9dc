"""Makes a virtual environment for each server from its pinned requirements."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from benchmarks.answers import SERVERS

VENVS: Final = Path(__file__).parent / ".venvs"
_OUR_SOURCES: Final = ("contract", "convserve", "service", "pyproject.toml", "requirements")


def bin_folder(name: str) -> Path:
    return VENVS / name / "bin"


def install(name: str, source: Path | None = None) -> None:
    """Makes or renews a server's environment if its requirements have changed.

    `source` is a checkout of convserve; None for the other servers, which have a requirements file.
    """
    folder = VENVS / name
    python = folder / "bin" / "python"
    digest, stamp = _digest(name, source), folder / ".installed"
    if stamp.exists() and stamp.read_text() == digest:
        return

    if not python.exists():
        _run(sys.executable, "-m", "venv", str(folder))

    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    if source is not None:
        _run(*pip, "-c", str(source / "requirements" / "constraints.txt"), str(source))
        # The version number stays while a checkout changes, so pip would skip the second install.
        _run(*pip, "--force-reinstall", "--no-deps", str(source))
    else:
        _run(*pip, "-r", str(SERVERS / name / "requirements.txt"))

    # Last, so that an install that failed is repeated.
    stamp.write_text(digest)


def installed_bytes(name: str) -> int:
    # Every environment has these, whether the server needs them or not.
    tools = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
    total = 0
    for site in (VENVS / name / "lib").glob("python*/site-packages"):
        for entry in site.iterdir():
            if not entry.name.startswith(tools):
                total += sum(file.stat().st_size for file in _files(entry))
    return total


def versions(name: str) -> dict[str, str]:
    python = str(bin_folder(name) / "python")
    command = (python, "-m", "pip", "--disable-pip-version-check", "list", "--format", "json")
    listed = subprocess.run(  # noqa: S603 - commands of our own
        command, check=True, capture_output=True, timeout=120
    ).stdout
    return {package["name"]: package["version"] for package in json.loads(listed)}


def _files(entry: Path) -> Iterable[Path]:
    paths = entry.rglob("*") if entry.is_dir() else (entry,)
    return (path for path in paths if path.is_file() and not path.is_symlink())


def _digest(name: str, source: Path | None) -> str:
    # Another Python makes another environment, and so does any change to convserve's own sources.
    digest = hashlib.sha256(sys.version.encode())
    if source is not None:
        parts = [source / part for part in _OUR_SOURCES if (source / part).exists()]
        files = [file for part in parts for file in sorted(_files(part))]
        files = [file for file in files if "__pycache__" not in file.parts]
    else:
        files = [SERVERS / name / "requirements.txt"]
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=1800)  # noqa: S603 - commands of our own

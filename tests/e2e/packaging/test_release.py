"""The release script: what it refuses, what it writes, and a dry run in a clone of the repository."""

# ruff: noqa: S603, S607 - runs git and our own script

from __future__ import annotations

import importlib.util
import subprocess
import sys
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest

from tests.e2e.server import ROOT

SCRIPT = ROOT / ".ci" / "release.py"
CHANGELOG = """# Changelog

## [Unreleased]

### Fixed

- A fault.

## [0.1.0] - 2026-11-22

- The first.
"""


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = load()


def test_release_moves_unreleased_entries_under_the_version():
    written = release.with_release(CHANGELOG, "0.2.0", date(2027, 1, 31))

    assert "## [Unreleased]\n\n## [0.2.0] - 2027-01-31\n\n### Fixed\n\n- A fault." in written
    assert release.release_notes(written, "0.2.0") == "### Fixed\n\n- A fault."


@pytest.mark.parametrize(
    ("changelog", "version", "message"),
    [
        pytest.param(CHANGELOG, "0.1.0", "section for 0.1.0 already", id="version-exists"),
        pytest.param(CHANGELOG.replace("- A fault.", ""), "0.2.0", "no entry", id="no-new-entry"),
        pytest.param("# Changelog\n", "0.2.0", "no entry", id="no-unreleased-section"),
    ],
)
def test_release_refuses_a_released_version_or_an_empty_changelog(changelog, version, message):
    with pytest.raises(release.ReleaseRefused, match=message):
        release.with_release(changelog, version, date(2027, 1, 31))


def test_release_writes_the_version_and_nothing_else():
    pyproject = (
        '[project]\nname = "convserve"\nversion = "0.1.0"\n[tool.ruff]\ntarget-version = "py311"\n'
    )

    assert release.with_version(pyproject, "0.2.0") == pyproject.replace("0.1.0", "0.2.0")


@pytest.mark.parametrize("version", ["0.2", "v0.2.0", "0.2.0rc1", "00.2.0", "0.0.9"])
def test_release_refuses_versions_that_are_not_higher_numbers(version):
    with pytest.raises(release.ReleaseRefused):
        release.with_version('version = "0.1.0"', version)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of the committed tree, on main."""
    folder = tmp_path / "clone"
    for command in (
        ("git", "clone", "--quiet", str(ROOT), str(folder)),
        ("git", "-C", str(folder), "switch", "--quiet", "--force-create", "main"),
        ("git", "-C", str(folder), "config", "user.name", "A. Tester"),
        ("git", "-C", str(folder), "config", "user.email", "tester@example.org"),
    ):
        subprocess.run(command, check=True)
    return folder


def dry_run(clone: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ".ci/release.py", "9.9.9", "--dry-run", "--skip-checks"]
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=600)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_release_refuses_a_tree_with_uncommitted_changes(clone):
    (clone / "README.md").write_text("changed", "utf-8")

    done = dry_run(clone)

    assert done.returncode == 2
    assert "uncommitted changes" in done.stderr


@pytest.mark.release
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_release_dry_run_builds_everything_and_changes_nothing(clone):
    before = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=clone)

    done = dry_run(clone)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "convserve-9.9.9-py3-none-any.whl" in done.stdout
    assert "convserve-9.9.9.tar.gz" in done.stdout
    assert subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=clone) == before
    assert subprocess.check_output(["git", "status", "--porcelain"], cwd=clone) == b""

"""Foreign packages with our names (docs/decisions/0027)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from convserve import neighbours

ROOT = Path(__file__).parents[2]


def test_complaint_own_packages_are_fine():
    assert neighbours.complaint("contract", "service", "training") is None


def test_complaint_names_a_missing_package():
    complaint = neighbours.complaint("contract", "no_such_package")

    assert complaint is not None
    assert "another package 'no_such_package': none at all" in complaint


@pytest.mark.parametrize(
    ("command", "package"),
    [("convserve", "service"), ("convserve", "contract"), ("training", "contract")],
)
def test_start_with_a_foreign_package_is_refused_with_both_paths(tmp_path, command, package):
    foreign = tmp_path / package
    foreign.mkdir()
    (foreign / "__init__.py").write_text("raise SystemExit('the foreign package was imported')\n")

    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", command, "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (3, "")
    (line,) = done.stderr.splitlines()
    assert str(ROOT / command) in line
    assert str(foreign / "__init__.py") in line


def test_start_next_to_a_folder_of_the_same_name_is_fine(tmp_path):
    (tmp_path / "service").mkdir()  # a user's own folder, not a package

    done = subprocess.run(
        [sys.executable, "-m", "convserve", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")

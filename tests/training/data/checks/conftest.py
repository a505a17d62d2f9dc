"""A data set for the tests of the data check."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.helpers.picture_sets import write_splits


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with classes a and b, ten pictures of each in every split, and nothing to report."""
    return write_splits(tmp_path / "data")

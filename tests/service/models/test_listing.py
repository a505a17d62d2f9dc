from __future__ import annotations

import shutil

import pytest

from contract.repository.listing import list_version
from service.models import listing
from service.models.listing import ListingCache
from tests import tinymodel


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the versions whose manifest was read."""
    numbers: list[int] = []

    def record(models_dir, name, number):
        numbers.append(number)
        return list_version(models_dir, name, number)

    monkeypatch.setattr(listing, "list_version", record)
    return numbers


def test_listing_reads_a_manifest_once(tmp_path, read):
    for number in (1, 2):
        tinymodel.write_version(tmp_path, version=number)
    cache = ListingCache()

    first, second = cache.list(tmp_path), cache.list(tmp_path)

    assert read == [1, 2]
    assert first == second
    assert list(second.models["tiny"]) == [1, 2]


def test_listing_reads_a_manifest_again_after_a_change(tmp_path, read):
    for number in (1, 2):
        tinymodel.write_version(tmp_path, version=number)
    cache = ListingCache()
    cache.list(tmp_path)
    (tmp_path / "tiny" / "2" / "manifest.json").write_bytes(b"broken")

    found = cache.list(tmp_path)

    assert read == [1, 2, 2]
    assert "tiny/2" in str(found.models["tiny"][2].problem)


def test_listing_forgets_versions_that_are_gone(tmp_path):
    for number in (1, 2):
        tinymodel.write_version(tmp_path, version=number)
    cache = ListingCache()
    cache.list(tmp_path)
    shutil.rmtree(tmp_path / "tiny" / "1")

    assert list(cache.list(tmp_path).models["tiny"]) == [2]
    assert list(cache._known) == [("tiny", 2)]


def test_listing_shares_equal_labels(tmp_path):
    for number in (1, 2):
        tinymodel.write_version(tmp_path, version=number)

    found = ListingCache().list(tmp_path).models["tiny"]

    assert found[1].manifest is not None
    assert found[2].manifest is not None
    assert found[1].manifest.labels is found[2].manifest.labels

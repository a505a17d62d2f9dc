"""Remembers the manifests of a model repository, because a poll should not parse all of them again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from contract.repository.listing import Listed, Listing, list_repository, list_version
from contract.repository.policy import VersionKey
from service.models.snapshot import VersionFacts, version_facts


class ListingCache:
    """Lists a model repository, and reads only the manifests of versions whose files have changed."""

    def __init__(self) -> None:
        self._known: dict[VersionKey, tuple[VersionFacts, Listed | None]] = {}

    def list(self, models_dir: Path) -> Listing:
        """Returns the listing; errors as in `list_repository`."""
        found: dict[VersionKey, tuple[VersionFacts, Listed | None]] = {}

        def list_one(models_dir: Path, name: str, number: int) -> Listed | None:
            key, facts = (name, number), version_facts(models_dir, name, number)
            known = self._known.get(key)
            if known is None or known[0] != facts:
                before = found.get(next(reversed(found), key))
                known = facts, _sharing_labels(list_version(models_dir, name, number), before)
            found[key] = known
            return known[1]

        listing = list_repository(models_dir, list_one)
        self._known = found
        return listing


def _sharing_labels(
    listed: Listed | None, before: tuple[VersionFacts, Listed | None] | None
) -> Listed | None:
    # The versions of a model often have the same labels, which are most of a manifest.
    old = before[1].manifest if before and before[1] else None
    new = listed.manifest if listed else None
    if listed is None or old is None or new is None or old.labels != new.labels:
        return listed
    return replace(listed, manifest=new.model_copy(update={"labels": old.labels}))

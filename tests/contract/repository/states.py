"""Model repositories in memory for the tests of what is served."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from contract.manifest import Manifest
from contract.repository.changes import Change, RepositoryState
from contract.repository.editing import write_change
from contract.repository.file import REPOSITORY_FILE, parse_repository_file, read_repository_file
from contract.repository.listing import Listed, Listing
from contract.repository.policy import ModelDecision, decide
from tests.contract.manifests import fields


def listed(name: str, number: int, labels: Iterable[str] = ("red", "green", "blue")) -> Listed:
    """Returns a good version with these labels."""
    known = [{"index": i, "name": label} for i, label in enumerate(labels)]
    top5 = [
        {"index": i, "label": known[i]["name"], "probability": probability}
        for i, probability in enumerate((0.7, 0.2))
    ]
    golden = [{**fields()["golden"][0], "top5": top5}]
    manifest = fields(name=name, version=number, labels=known, golden=golden)
    return Listed(Manifest.model_validate_json(json.dumps(manifest)), "0" * 64)


def listing(models: Mapping[str, Mapping[int, Listed] | Iterable[int]]) -> Listing:
    """Returns a listing; a model given by numbers has good versions only."""
    return Listing(
        {
            name: versions
            if isinstance(versions, Mapping)
            else {number: listed(name, number) for number in versions}
            for name, versions in models.items()
        }
    )


def decide_cats(text: str, versions: Mapping[int, Listed]) -> ModelDecision:
    """Returns what is served of the model cats with this content of repository.toml."""
    parsed = parse_repository_file(text.encode(), REPOSITORY_FILE)
    return decide(parsed, Listing({"cats": versions}), {}).models["cats"]


class Edited:
    """A repository.toml on disk, and the versions that it speaks of."""

    def __init__(self, folder: Path, text: str | None, found: Listing) -> None:
        self.path = folder / REPOSITORY_FILE
        self.found = found
        if text is not None:
            self.path.write_bytes(text.encode())

    @property
    def state(self) -> RepositoryState:
        read = read_repository_file(self.path)
        return RepositoryState(
            self.path.parent, read, self.found, decide(read.parsed, self.found, {})
        )

    @property
    def text(self) -> str:
        return self.path.read_bytes().decode()

    def answer(self, name: str = "cats") -> int | None:
        return self.state.decision.models[name].answer

    def apply(self, verb: Any, *arguments: Any) -> Change:
        """Makes a change of `contract.repository.changes` and writes it."""
        state = self.state
        change: Change = verb(state, *arguments)
        write_change(state.file, change)
        return change

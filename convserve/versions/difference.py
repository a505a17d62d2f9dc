"""Compares two versions: labels, facts of the manifests, speed and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contract.manifest import Manifest
from contract.versions import read_version
from convserve.pictures import varied_examples
from convserve.versions.answers import AnswerDifference, answer_files, compare_answers
from convserve.versions.facts import Fact, facts, label_changes, moved
from convserve.versions.speed import SpeedDifference, compare_speed
from service.models.repository import EngineConfig, LoadedVersion, load_version

_N_PICTURES = 32  # for the speed

Key = tuple[str, int]  # name, number


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two versions."""

    name: str
    version: int
    created_at: str
    manifest_sha256: str
    n_classes: int
    provider: str

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class LabelDifference:
    """How the labels differ. A renamed class is neither removed nor added.

    Attributes:
        n_shared: classes that both versions have, under the same name or another.
        removed: names of classes that only A has.
        added: names of classes that only B has.
        renamed: name in A -> name in B.
        moved: name in B -> index in A and index in B, of classes whose index differs.
    """

    n_shared: int
    removed: tuple[str, ...]
    added: tuple[str, ...]
    renamed: dict[str, str]
    moved: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs from version A to version B.

    Attributes:
        facts: what the manifests and the files say, also where it is the same.
        speed: None if it was not measured.
        answers: None without pictures that can be decoded.
        refused: file -> reason, for the pictures that cannot be read or decoded.
    """

    a: Side
    b: Side
    labels: LabelDifference
    facts: tuple[Fact, ...]
    speed: SpeedDifference | None = None
    answers: AnswerDifference | None = None
    refused: dict[str, str] = field(default_factory=dict)


def difference(
    models_dir: Path,
    keys: tuple[Key, Key],
    folder: Path | None,
    files: Sequence[Path],
    seconds: float,
    provider: str,
) -> Difference:
    """Loads two versions as the service does and compares them.

    Args:
        models_dir: the model repository.
        keys: name and number of each version.
        folder: what `files` were found in; None without pictures.
        files: the pictures to answer.
        seconds: for the speed; 0 does not measure it.
        provider: the execution provider for both.

    Raises:
        ModelError: a version is not valid.
        ProviderUnavailable: the provider does not work here.
        OSError: a version was removed meanwhile.
    """
    # One thread, as a lane of the service has.
    config = EngineConfig(provider, threads=1, max_batch_size=1)
    a, b = (load_version(models_dir, *key, config) for key in keys)
    changes = label_changes(a.manifest, b.manifest)

    answers, refused = None, {}
    if folder is not None:
        answered = answer_files(files, a, b)
        answers = compare_answers(answered, folder, a.manifest, b.manifest, changes)
        refused = answered.refused
        files = answered.files

    speed = None
    if seconds:
        pictures = [file.read_bytes() for file in files[:_N_PICTURES]]
        pictures = pictures or _own_pictures(models_dir, a.manifest)
        speed = compare_speed(pictures, a, b, seconds)

    return Difference(
        a=_side(a),
        b=_side(b),
        labels=LabelDifference(
            n_shared=len(changes.places),
            removed=changes.removed,
            added=changes.added,
            renamed=dict(changes.renamed),
            moved=moved(b.manifest, changes),
        ),
        facts=tuple(facts(models_dir, a.manifest, b.manifest)),
        speed=speed,
        answers=answers,
        refused=refused,
    )


def _side(one: LoadedVersion) -> Side:
    manifest = one.manifest
    return Side(
        name=manifest.name,
        version=manifest.version,
        created_at=manifest.created_at.isoformat(),
        manifest_sha256=one.manifest_sha256,
        n_classes=manifest.n_classes,
        provider=one.provider,
    )


def _own_pictures(models_dir: Path, manifest: Manifest) -> list[bytes]:
    # The example pictures may be missing in an installation. Golden ones never are.
    if examples := varied_examples():
        return examples
    version = read_version(models_dir, manifest.name, manifest.version)
    return [version.contents[example.file] for example in manifest.golden]

"""Checkpoints: written whole or not at all, and never read if damaged.

`checkpoints/last.pt` holds everything a run needs to resume, `last.previous.pt` is the one before it,
and `best.pt` has the weights of the best epoch. `torch.load` opens all of them with
`weights_only=True`. They are zip files, and the zip comment is a SHA-256 of the content.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from training.config.config import RunConfig
from training.data.samples import SPLITS, DataSet, Sample
from training.errors import CheckpointRefused
from training.system.files import write_whole

log = logging.getLogger(__name__)

FOLDER: Final = "checkpoints"
LAST: Final = "last.pt"
PREVIOUS: Final = "last.previous.pt"
DAMAGED: Final = "last.damaged.pt"
BEST: Final = "best.pt"

_FORMAT: Final = 1
_NO_COMMENT: Final = b"\0\0"  # a zip file ends with the length of its comment and the comment
_DIGEST_BYTES: Final = 64
_COMMENT_LENGTH: Final = _DIGEST_BYTES.to_bytes(2, "little")


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """The config and the data that a checkpoint belongs to."""

    config: str  # its values without the note, as JSON
    config_sha256: str  # as in the manifest
    data: str  # name and number of pictures of each split, for messages
    data_sha256: str  # of names, classes and sizes of all pictures


def identity_of(config: RunConfig, data: DataSet) -> RunIdentity:
    values = config.model_dump(mode="json", exclude={"note"})
    digest = hashlib.sha256()
    for split in SPLITS:
        for sample in data.split(split):
            line = (split, sample.name, sample.index, _content(sample))
            digest.update(json.dumps(line).encode())
    counts = ", ".join(f"{len(data.split(split))} {split}" for split in SPLITS)
    return RunIdentity(
        json.dumps(values), config.sha256, f"{data.name}: {counts}", digest.hexdigest()
    )


class Checkpoints:
    """The checkpoints of one run, in the subfolder `checkpoints` of its folder."""

    def __init__(self, folder: Path, identity: RunIdentity) -> None:
        self.folder = folder / FOLDER
        self._identity = identity

    @property
    def exist(self) -> bool:
        return any((self.folder / name).exists() for name in (LAST, PREVIOUS))

    def write_last(self, state: Mapping[str, Any]) -> None:
        self._write(LAST, state, keep_as=PREVIOUS)

    def write_best(self, state: Mapping[str, Any]) -> None:
        self._write(BEST, state)

    def read_last(self) -> bytes | None:
        """Returns the newest undamaged checkpoint, or None if there is none.

        Raises:
            CheckpointRefused: all checkpoints are damaged.
        """
        bad: list[str] = []
        for name in (LAST, PREVIOUS):
            path = self.folder / name
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            if is_whole(data):
                if bad:
                    log.warning("%s is damaged; resuming from %s", " and ".join(bad), name)
                return data
            bad.append(name)
            # Renamed, so that the next write does not replace the good one with this one.
            path.replace(self.folder / DAMAGED)

        if bad:
            raise CheckpointRefused(
                f"{' and '.join(bad)} in {self.folder} are damaged (the digest differs); remove the "
                "folder to start again"
            )
        return None

    def open(self, data: bytes) -> dict[str, Any]:
        """Returns the state in a checkpoint from `read_last`.

        Raises:
            CheckpointRefused: it is no checkpoint, or it was made with another config or other data.
        """
        state = load(data)
        if state.get("format") != _FORMAT:
            raise CheckpointRefused(
                f"the checkpoint has format {state.get('format')!r}, this program reads {_FORMAT}"
            )

        made_by = RunIdentity(**state["identity"])
        if made_by.config_sha256 != self._identity.config_sha256:
            raise CheckpointRefused(
                "the checkpoint was made with another config: "
                f"{_differences(made_by.config, self._identity.config)}; "
                "resume with that config or use another folder"
            )
        if made_by.data_sha256 != self._identity.data_sha256:
            raise CheckpointRefused(
                f"the checkpoint was made with other data: then {made_by.data}; now "
                f"{self._identity.data}; resume with those pictures or use another folder"
            )

        return state

    def _write(self, name: str, state: Mapping[str, Any], keep_as: str | None = None) -> None:
        sealed = seal({"format": _FORMAT, "identity": asdict(self._identity), **state})
        target = self.folder / name
        # Until the new file is complete, `read_last` finds the old one under its second name.
        if keep_as is not None and target.exists():
            target.replace(self.folder / keep_as)
        write_whole(target, sealed)


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns a line for each difference between two runs' surroundings."""
    return [
        f"{name}: {then.get(name)} before, {value} now; the result will be close to that of an "
        "uninterrupted run, but not bit-identical"
        for name, value in now.items()
        if then.get(name) != value
    ]


def seal(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[: -len(_NO_COMMENT)] + _COMMENT_LENGTH + digest


def is_whole(data: bytes) -> bool:
    """Returns True if the file's content matches its digest."""
    end = len(data) - _DIGEST_BYTES
    if data[max(end - 2, 0) : max(end, 0)] != _COMMENT_LENGTH:
        return False
    digest = hashlib.sha256(memoryview(data)[: end - 2])
    digest.update(_NO_COMMENT)
    return digest.hexdigest().encode() == data[end:]


def load(data: bytes) -> dict[str, Any]:
    """Returns the content of a checkpoint file, with tensors on the CPU. It executes nothing.

    Raises:
        CheckpointRefused: the file holds anything but tensors and plain values.
    """
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can make the restricted unpickler raise anything
        # torch's message advises turning the protection off, so it is not repeated here.
        raise CheckpointRefused(
            "the checkpoint cannot be read: it holds more than tensors and plain values, or is no "
            "checkpoint"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointRefused("the checkpoint holds no training state")
    return state


def _content(sample: Sample) -> str | int:
    # A digest of data in memory; of a file the size alone, because reading all of them takes long.
    if sample.data is not None:
        return hashlib.sha256(sample.data).hexdigest()
    try:
        return sample.path.stat().st_size if sample.path is not None else -1
    except OSError:
        return -1


def _differences(then: str, now: str) -> str:
    old, new = _flatten(json.loads(then)), _flatten(json.loads(now))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {old.get(key)!r} and is {new.get(key)!r}" for key in keys)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat

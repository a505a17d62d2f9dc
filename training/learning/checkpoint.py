"""Training state on the disk: written whole or not at all, and never read where it is damaged.

`checkpoints/last.pt` holds everything a run needs to go on, `last.previous.pt` the one before it,
and `best.pt` the weights of the best epoch. All are files of `torch.save` that `torch.load` opens
with `weights_only=True`; a SHA-256 of the content is appended as the comment of the zip file that
they are.
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
    """What a checkpoint belongs to.

    Attributes:
        config: the values that count, as JSON.
        config_sha256: their digest, as the manifest states it.
        data: name and number of pictures of each split, for messages.
        data_sha256: digest of names, classes and sizes of all pictures.
    """

    config: str
    config_sha256: str
    data: str
    data_sha256: str


def identity_of(config: RunConfig, data: DataSet) -> RunIdentity:
    """Returns what tells this run from others."""
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
    """The checkpoints of one run.

    Args:
        folder: of the run; they go into its subfolder `checkpoints`.
        identity: of the run.
    """

    def __init__(self, folder: Path, identity: RunIdentity) -> None:
        self.folder = folder / FOLDER
        self._identity = identity

    @property
    def exist(self) -> bool:
        """Some run has begun here."""
        return any((self.folder / name).exists() for name in (LAST, PREVIOUS))

    def write_last(self, state: Mapping[str, Any]) -> None:
        """Writes the newest state; the one before it stays as `last.previous.pt`.

        Args:
            state: tensors and plain values.
        """
        self._write(LAST, state, keep_as=PREVIOUS)

    def write_best(self, state: Mapping[str, Any]) -> None:
        """Replaces the weights of the best epoch."""
        self._write(BEST, state)

    def read_last(self) -> bytes | None:
        """Returns the newest checkpoint that is whole, or None where no run has begun.

        A damaged one is renamed, so that the next write does not push out the good one.

        Raises:
            CheckpointRefused: there are some, all damaged.
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
                    log.warning("%s is damaged; going on from %s", " and ".join(bad), name)
                return data
            bad.append(name)
            path.replace(self.folder / DAMAGED)
        if bad:
            raise CheckpointRefused(
                f"{' and '.join(bad)} in {self.folder} are damaged (the digest differs); remove the "
                "folder to start anew"
            )
        return None

    def open(self, data: bytes) -> dict[str, Any]:
        """Returns the state in a checkpoint of this run.

        Args:
            data: from `read_last`.

        Raises:
            CheckpointRefused: another config or other data made it, or it is no checkpoint of ours.
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
                "go on with that config or take another folder"
            )
        if made_by.data_sha256 != self._identity.data_sha256:
            raise CheckpointRefused(
                f"the checkpoint was made with other data: then {made_by.data}; now "
                f"{self._identity.data}; go on with those pictures or take another folder"
            )
        return state

    def _write(self, name: str, state: Mapping[str, Any], keep_as: str | None = None) -> None:
        sealed = seal({"format": _FORMAT, "identity": asdict(self._identity), **state})
        target = self.folder / name
        # From here on the newest whole one is under the second name that is looked for.
        if keep_as is not None and target.exists():
            target.replace(self.folder / keep_as)
        write_whole(target, sealed)


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns a line for each circumstance that differs from that of the checkpoint."""
    return [
        f"{name}: {then.get(name)} before, {value} now; the result will be close to that of an "
        "undisturbed run but not equal to the bit"
        for name, value in now.items()
        if then.get(name) != value
    ]


def seal(state: Mapping[str, Any]) -> bytes:
    """Returns a checkpoint file: what `torch.save` writes, with its digest as the zip comment."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[: -len(_NO_COMMENT)] + _COMMENT_LENGTH + digest


def is_whole(data: bytes) -> bool:
    """Whether a file of `seal` is as it was written."""
    end = len(data) - _DIGEST_BYTES
    if data[max(end - 2, 0) : max(end, 0)] != _COMMENT_LENGTH:
        return False
    digest = hashlib.sha256(memoryview(data)[: end - 2])
    digest.update(_NO_COMMENT)
    return digest.hexdigest().encode() == data[end:]


def load(data: bytes) -> dict[str, Any]:
    """Returns what a checkpoint file holds, tensors on the CPU; nothing in it is executed.

    Raises:
        CheckpointRefused: it holds anything but tensors and plain values.
    """
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler fails in as many ways as files can lie
        # torch's own message advises to turn the protection off, so it is not repeated.
        raise CheckpointRefused(
            "the checkpoint cannot be read: it holds more than tensors and plain values, or is none"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointRefused("the checkpoint is no training state")
    return state


def _content(sample: Sample) -> str | int:
    """Returns a digest of what is in memory and the size, in bytes, of what is on the disk."""
    if sample.data is not None:
        return hashlib.sha256(sample.data).hexdigest()
    try:
        return sample.path.stat().st_size if sample.path is not None else -1
    except OSError:
        return -1


def _differences(then: str, now: str) -> str:
    """Names the keys in which two configs differ, with both values."""
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

"""The folder of one training run: its request, so that it can be resumed, and its results.

runs/<name>/<number>/
    run.json          data source and destination, for `fit --resume`
    config.toml       the effective config; can be given to another run
    check.json        findings of the data check
    splits.csv        which picture is in which split
    log.jsonl         one line per step and one per epoch
    checkpoints/      the newest and the best weights
    head.safetensors  the classifier of the first stage
    report/           report.html, its plots and metrics.json
    published.json    the version it became
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import tomli_w

from training.config.config import RunConfig, read_config
from training.data.checks.findings import Findings
from training.data.samples import SPLITS, DataSet
from training.errors import CheckpointRefused, InputRefused
from training.system.files import write_whole

CONFIG: Final = "config.toml"
REPORT: Final = "report"
HEAD: Final = "head.safetensors"
_RUN: Final = "run.json"
_CHECK: Final = "check.json"
_SPLITS: Final = "splits.csv"
_BEFORE_TRAINING: Final = (CONFIG, _RUN, _CHECK, _SPLITS)
_PUBLISHED: Final = "published.json"


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The command line of a run, apart from its config."""

    source: str  # of the pictures; a folder or file as an absolute path
    name: str  # of the model
    version: int | None  # None takes the next free number when it is published
    models_dir: str  # absolute
    license: str | None  # SPDX identifier of the pictures' terms
    publish: bool
    command: str  # the command line without local folders
    layers: bool = False  # publish the graph of the layers too
    allow_worse: bool = False  # than the version it replaces
    allow_label_changes: bool = False  # labels of that version may be gone or renamed


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._created: tuple[Path, ...] = ()  # by `new`, innermost first

    @classmethod
    def new(cls, path: Path, request: RunRequest, config: RunConfig) -> RunFolder:
        """Creates the folder and writes the request and the config.

        Raises:
            InputRefused: the folder is not empty.
        """
        if path.exists() and any(path.iterdir()):
            raise InputRefused(
                f"{path} is not empty; continue that run with --resume or choose another --run"
            )
        folder = cls(path)
        folder._created = tuple(one for one in (path, *path.parents) if not one.exists())
        path.mkdir(parents=True, exist_ok=True)
        values = config.model_dump(mode="json", exclude_none=True)
        folder.write(CONFIG, tomli_w.dumps(values))
        folder.write_json(_RUN, asdict(request))
        return folder

    def discard(self) -> None:
        """Removes what `new` created, unless there is more than a run has before it trains."""
        if any(file.name not in _BEFORE_TRAINING for file in self.path.iterdir()):
            return
        for file in self.path.iterdir():
            file.unlink()
        with contextlib.suppress(OSError):  # up to the first folder that holds something else
            for folder in self._created:
                folder.rmdir()

    def read_request(self) -> tuple[RunRequest, RunConfig]:
        """Reads the request and the config.

        Raises:
            CheckpointRefused: this is not the folder of a run.
            ConfigInvalid: another release wrote the config.
        """
        try:
            request = RunRequest(**json.loads((self.path / _RUN).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointRefused(f"{self.path} is not the folder of a run ({_RUN})") from error
        return request, read_config(str(self.path / CONFIG))

    @property
    def published(self) -> str | None:
        """The published version as "<name>/<number>", or None."""
        try:
            found = json.loads((self.path / _PUBLISHED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return str(found["version"])

    def note_published(self, version: str) -> None:
        self.write_json(_PUBLISHED, {"version": version})

    def write_data(self, data: DataSet, findings: Findings) -> None:
        self.write_json(_CHECK, findings.to_json())
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("split", "picture", "label"))
        for split in SPLITS:
            rows.writerows((split, s.name, data.labels[s.index].name) for s in data.split(split))
        self.write(_SPLITS, text.getvalue())

    def write_json(self, name: str, values: Any) -> None:
        self.write(name, json.dumps(values, indent=1, ensure_ascii=False) + "\n")

    def write(self, name: str, text: str) -> None:
        write_whole(self.path / name, text.encode())


def next_folder(runs_dir: Path, name: str) -> Path:
    """Returns `runs_dir/<name>/<number>` with the next free number."""
    taken = [int(p.name) for p in (runs_dir / name).glob("*") if p.name.isdecimal()]
    return runs_dir / name / str(max(taken, default=0) + 1)

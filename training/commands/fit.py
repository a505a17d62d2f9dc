"""`convserve-train fit`: from flags to a request. `training.commands.fitting` does the work."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from contract.manifest import NAME_PATTERN, NAME_RULE
from training.commands.fitting import fit
from training.config.config import RunConfig, read_config
from training.data.sources.builtin import DIGITS
from training.data.sources.find import TORCHVISION, local_path
from training.errors import InputRefused, LabelsChanged
from training.learning.folder import RunFolder, RunRequest, next_folder
from training.system.environment import is_first_process

log = logging.getLogger(__name__)

_RUNS: Final = Path("runs")
# A resumed run reads these from its folder: option name -> flag.
_ONLY_NEW: Final = {
    "source": "--data",
    "config": "--config",
    "changes": "--set",
    "seed": "--seed",
    "name": "--name",
    "version": "--version",
    "run_dir": "--run",
    "license": "--license",
    "layers": "--layers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """The flags of `convserve-train fit`; `command` is the command line for the manifest."""

    command: str
    source: str | None
    config: str | None
    changes: tuple[str, ...]
    seed: int | None
    name: str | None
    version: int | None
    models_dir: Path
    license: str | None
    layers: bool
    run_dir: Path | None
    resume_dir: Path | None
    no_publish: bool
    allow_worse: bool
    allow_label_changes: bool
    device: str
    cache_dir: Path


def run_fit(options: FitOptions) -> Path | None:
    """Starts or resumes a run; returns the published version's folder, or None."""
    if options.resume_dir is not None:
        given = [
            flag
            for name, flag in _ONLY_NEW.items()
            if getattr(options, name) not in (None, (), False)
        ]
        if given:
            raise InputRefused(
                f"--resume reads all settings from the run's folder; remove {given[0]}"
            )
        folder = RunFolder(options.resume_dir)
        request, config = folder.read_request()
        # A finished run that a gate refused can be published without training again.
        request = replace(
            request,
            allow_worse=request.allow_worse or options.allow_worse,
            allow_label_changes=request.allow_label_changes or options.allow_label_changes,
        )
    else:
        request, config = _new_run(options)
        # Under torchrun only the first process creates the folder.
        path = options.run_dir or next_folder(_RUNS, request.name)
        folder = RunFolder.new(path, request, config) if is_first_process() else RunFolder(path)

    resume = options.resume_dir is not None
    try:
        return fit(
            folder,
            request,
            config,
            resume=resume,
            device=options.device,
            cache_dir=options.cache_dir,
        )
    except (InputRefused, LabelsChanged):
        if not resume and is_first_process():
            folder.discard()
        raise


def _new_run(options: FitOptions) -> tuple[RunRequest, RunConfig]:
    source = options.source
    if source is None:
        raise InputRefused("--data is required: a folder, a .csv, digits or torchvision:NAME")

    changes = list(options.changes)
    if options.seed is not None:
        changes.append(f"seed={options.seed}")
    config = read_config(options.config or ("digits" if source == DIGITS else "finetune"), changes)

    built_in = source == DIGITS or source.startswith(TORCHVISION)
    name = options.name or name_of(source)
    if not options.name and not built_in and name != (given := _stem(source).lower()):
        log.info("the model is called %s, after %s; --name sets another name", name, given)
    if not re.fullmatch(NAME_PATTERN, name):
        raise InputRefused(f"the model name {name!r} cannot be used: set --name to {NAME_RULE}")

    request = RunRequest(
        source=source if built_in else str(local_path(source).absolute()),
        name=name,
        version=options.version,
        models_dir=str(options.models_dir.absolute()),
        license=options.license,
        publish=not options.no_publish,
        command=options.command,
        layers=options.layers,
        allow_worse=options.allow_worse,
        allow_label_changes=options.allow_label_changes,
    )
    return request, config


def name_of(source: str) -> str:
    """Derives a model name from the name of a folder, a .csv or a built-in dataset."""
    plain = source.removeprefix(TORCHVISION)
    return re.sub(r"[^a-z0-9._-]+", "-", _stem(plain).lower()).strip("-._")


def _stem(source: str) -> str:
    path = local_path(source).absolute()
    return path.stem if source.endswith(".csv") else path.name

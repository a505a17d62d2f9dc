"""What `convserve-train check` does with its flags; needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click

from training.config.config import Data
from training.data.checks.check import inspect_data
from training.data.checks.findings import render


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """The flags of `convserve-train check`, which describes them."""

    source: str
    json_file: Path | None
    strict: bool
    cache_dir: Path


def run_check(options: CheckOptions) -> bool:
    """Inspects pictures and prints what was found.

    Returns:
        Whether `fit` would accept them; with `strict`, whether there is nothing to warn of.
    """
    findings = inspect_data(options.source, Data(), cache_dir=options.cache_dir)
    click.echo(render(findings))
    if options.json_file is not None:
        text = json.dumps(findings.to_json(), indent=1, ensure_ascii=False)
        options.json_file.write_text(text + "\n", encoding="utf-8")
    return not findings.stops and not (options.strict and findings.warnings)

"""`convserve-train check`. Must not import torch."""

from __future__ import annotations

import json
from pathlib import Path

import click

from training.config.config import Data
from training.data.checks.check import check_data
from training.data.checks.findings import render


def run_check(source: str, json_file: Path | None, strict: bool, cache_dir: Path) -> bool:
    """Prints the findings and returns whether the data passes."""
    findings = check_data(source, Data(), cache_dir=cache_dir)
    click.echo(render(findings))
    if json_file is not None:
        text = json.dumps(findings.to_json(), indent=1, ensure_ascii=False)
        json_file.write_text(text + "\n", encoding="utf-8")

    return not findings.stops and not (strict and findings.warnings)

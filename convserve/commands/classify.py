"""`convserve classify`: classifies picture files without a server."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from contract.errors import ImageError
from contract.predictions import DEFAULT_TOP_K, Prediction, default_top_k, to_predictions
from contract.preprocessing import read_input
from convserve.commands.options import (
    UserPath,
    choose_version,
    choosing_file_option,
    errors_as_messages,
    models_option,
    provider_option,
    reason,
)
from convserve.pictures import image_files
from service.models.engine import Run
from service.models.repository import EngineConfig, load_version
from service.system.cpus import usable_cpus


def _print_text(file: Path, predictions: Sequence[Prediction]) -> None:
    click.echo(f"{file}")
    for prediction in predictions:
        click.echo(f"  {prediction.probability:7.4f}  {prediction.label}")


def _print_json(file: Path, predictions: Sequence[Prediction]) -> None:
    click.echo(json.dumps({"file": str(file), "predictions": [asdict(one) for one in predictions]}))


def _print_csv(file: Path, predictions: Sequence[Prediction]) -> None:
    rows = csv.writer(sys.stdout, lineterminator="\n")
    for rank, one in enumerate(predictions, 1):
        rows.writerow([file, rank, one.label, one.index, one.synset, f"{one.probability:.6f}"])


_PRINTERS: Final[dict[str, Callable[[Path, Sequence[Prediction]], None]]] = {
    "text": _print_text,
    "json": _print_json,
    "csv": _print_csv,
}


@click.command()
@click.argument("paths", nargs=-1, required=True, type=UserPath())
@click.option(
    "--model", help="NAME, NAME/VERSION or NAME/ALIAS [default: the model of /v1/classify]."
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    show_default=f"{DEFAULT_TOP_K}, or all labels of a model with sigmoid",
    help="Number of predictions per picture.",
)
@click.option("--json", "output", flag_value="json", help="Print one JSON object per file.")
@click.option("--csv", "output", flag_value="csv", help="Print one CSV row per prediction.")
@models_option
@choosing_file_option
@provider_option
def classify(
    paths: tuple[Path, ...],
    model: str | None,
    top_k: int | None,
    output: str | None,
    models_dir: Path,
    provider: str,
) -> None:
    """Classify picture files without a server, with the same code as the service.

    PATHS are files or folders. Folders are searched for JPEG, PNG, WebP, GIF, BMP, HEIC and AVIF
    files by the ends of their names, in upper or lower case; a file that you name may be called anything.
    A file that cannot be classified is reported, the others are still classified, and the exit
    status is 1.
    """
    with errors_as_messages():
        config = EngineConfig(provider, threads=usable_cpus(), max_batch_size=1)
        version = load_version(models_dir, *choose_version(models_dir, model), config)

    manifest = version.manifest
    n_predictions = top_k or default_top_k(manifest)
    print_predictions = _PRINTERS[output or "text"]
    if output == "csv":
        click.echo("file,rank,label,index,synset,probability")

    failed = False
    for path in paths:
        if path.parts[:1] in (("http:",), ("https:",)):
            click.echo(f"{path}: URLs are not fetched; download the picture first", err=True)
            failed = True
            continue

        found = False
        for file in image_files(path):
            found = True
            try:
                row = read_input(file.read_bytes(), manifest)
            except (ImageError, OSError) as error:
                click.echo(f"{file}: {reason(error)}", err=True)
                failed = True
                continue
            probabilities = version.engine.run(row[None], Run())[0]  # (C,)
            print_predictions(file, to_predictions(probabilities, manifest, n_predictions))

        if not found:
            click.echo(f"{path}: no image files in this folder", err=True)
            failed = True
    sys.exit(1 if failed else 0)

"""`convserve classify`: picture files without a server."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from contract.errors import ImageError
from contract.predictions import to_predictions
from contract.preprocessing import read_input
from convserve.commands.options import (
    errors_as_messages,
    find_models_dir,
    models_option,
    provider_option,
)
from service.models.engine import Run
from service.models.repository import RunPlan, Shelf, load_repository
from service.system.cpus import usable_cpus


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", help="Model name [default: as /v1/classify].")
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True)
@models_option
@provider_option
def classify(
    files: tuple[Path, ...], model: str | None, top_k: int, models_dir: Path | None, provider: str
) -> None:
    """Classify picture files without a server, through the very same code."""
    with errors_as_messages():
        plan = RunPlan(provider, threads=usable_cpus(), max_batch_size=1)
        repository = load_repository(Shelf(find_models_dir(models_dir), plan))
        version = repository.get(model)
    failed = False
    for file in files:
        try:
            row = read_input(file.read_bytes(), version.manifest)
        except (ImageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            click.echo(f"{file}: {reason}", err=True)
            failed = True
            continue
        probabilities = version.engine.run(row[None], Run())[0]  # (C,)
        click.echo(f"{file}")
        for prediction in to_predictions(probabilities, version.manifest, top_k):
            click.echo(f"  {prediction.probability:7.4f}  {prediction.label}")
    sys.exit(1 if failed else 0)

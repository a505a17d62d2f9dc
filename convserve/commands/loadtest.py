"""`convserve loadtest`: measures a server under load; `convserve loadtest compare`: two results."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, Final

import click

from convserve.commands.options import UserPath, reason
from convserve.loadtest.arguments import Duration, Header, Share, command_line, parse_url
from convserve.loadtest.bodies import BODIES
from convserve.loadtest.bodies import Options as CallOptions
from convserve.loadtest.secrets import hide_in_url

try:
    import hdrh  # noqa: F401 - before the load test, not after it
    import jinja2  # noqa: F401
    import rich  # noqa: F401

    from convserve.commands.compare import compare_command
    from convserve.loadtest.report import summary_of, write_report
    from convserve.loadtest.results import write_result
    from convserve.loadtest.running.loadtest import Load, LoadTest, Options
    from convserve.loadtest.running.objective import DEFAULT, HELP, parse_objective
    from convserve.loadtest.running.profiles import Profile, Rates
    from convserve.loadtest.running.progress import Progress
except ModuleNotFoundError as error:
    if error.name not in {"hdrh", "jinja2", "rich"}:
        raise
    raise click.UsageError(
        f"this command needs {error.name}; install it with: pip install 'convserve[loadtest]'"
    ) from error

from convserve.loadtest.pictures import (
    break_pictures,
    make_pictures,
    match_expected,
    read_expected,
    read_pictures,
)

_DURATIONS_S: Final = {"steady": 30.0, "ramp": 10.0, "spike": 60.0, "soak": 3600.0}
_WARMUPS_S: Final = {"steady": 5.0, "ramp": 2.0, "spike": 5.0, "soak": 5.0}
_PEAK: Final = 3.0  # a spike's peak, times the usual rate
_N_MADE: Final = 64
_N_BROKEN: Final = 32
_MISSED: Final = 1  # exit statuses
_INVALID: Final = 3
_INTERRUPTED: Final = 130  # as shells have it


class _RunByDefault(click.Group):
    """Runs a load test unless the first argument is the name of another command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = ["run", *(args or ["--help"])]
        return super().parse_args(ctx, args)


@click.group(cls=_RunByDefault)
def loadtest() -> None:
    """Measure a server under load, or compare two results."""


loadtest.add_command(compare_command, "compare")


@loadtest.command("run", epilog="convserve loadtest compare A B compares two results.")
@click.argument("url")
@click.argument("photos", nargs=-1, type=UserPath())
@click.option(
    "--profile",
    type=click.Choice(["steady", "ramp", "spike", "soak"]),
    help="steady: one rate; ramp: searches the highest rate that keeps the objective; spike: a peak "
    "in the middle third; soak: an hour. [default: ramp, or steady with --rate or --clients]",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Requests a second; of a ramp, where the search starts.",
)
@click.option(
    "--peak",
    type=click.FloatRange(min=0, min_open=True),
    help=f"Requests a second in the spike. [default: {_PEAK:g} times --rate]",
)
@click.option(
    "--clients",
    type=click.IntRange(1, 4000),
    help="Closed loop: each client sends its next request after its last answer, as with wrk. "
    "A server that stalls then gets fewer requests, so latencies look better than they are.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "even"]),
    default="poisson",
    show_default=True,
    help="Gaps between requests: random, as from independent users, or equal.",
)
@click.option("--objective", default=DEFAULT, show_default=True, help=f"What must hold: {HELP}.")
@click.option("--duration", type=Duration(0.1), help="Measured time; of each trial of a ramp.")
@click.option("--warmup", type=Duration(0.0), help="Time before it that does not count.")
@click.option(
    "--timeout",
    type=Duration(0.01),
    default="10s",
    show_default=True,
    help="A request without an answer in this time has failed.",
)
@click.option(
    "--body",
    type=click.Choice(list(BODIES)),
    default="raw",
    show_default=True,
    help=" ".join(f"{body.name}: {body.help}" for body in BODIES.values()),
)
@click.option("--model", help="NAME or NAME/VERSION in the path. [default: the server's own]")
@click.option("--path", help="Path for other servers. [default: that of the body kind]")
@click.option("--field", help="Name of the form field, JSON member or input.")
@click.option("--header", "headers", type=Header(), multiple=True, help="'Name: value', repeated.")
@click.option(
    "--per-request",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Pictures in each request.",
)
@click.option(
    "--broken",
    type=Share(),
    default="0%",
    show_default=True,
    help="Requests with a broken picture.",
)
@click.option(
    "--expect",
    type=UserPath(dir_okay=False),
    help="First class of each picture: what `convserve classify --csv PHOTOS` prints, or JSON.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Senders. More are needed where one of them is the limit.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of arrivals and pictures.")
@click.option("--insecure", is_flag=True, help="Do not verify the server's certificate.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for result.json and report.html. [default: loadtest-results/TIME]",
)
def run(url: str, photos: tuple[Path, ...], output: Path | None, **given: Any) -> None:
    """Measure a server under load.

    URL is the server's address, such as http://127.0.0.1:8000; its path, if it has one, is where
    requests go. PHOTOS are files and folders; without any, photographs are made from the examples.

    Writes result.json and report.html. The exit status is 0 if the objective was met, 1 if it was
    missed, and 3 if the result is not valid: the server did not answer, or the sender was the limit.
    """
    options = _options(url, given)
    load = _load(photos, given)
    output = output or Path("loadtest-results", datetime.now().strftime("%Y%m%d-%H%M%S"))
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"{output} cannot be written: {reason(error)}") from error

    with (
        TemporaryDirectory(prefix="convserve-loadtest-") as folder,
        Progress(sys.stderr or io.StringIO()) as progress,
    ):
        try:
            test = LoadTest(options, load, Path(folder), progress)
        except ValueError as error:
            raise click.UsageError(str(error)) from error
        try:
            with _stopped_by_ctrl_c(test):
                result = test.run()
        except KeyboardInterrupt:
            sys.exit(_INTERRUPTED)

    click.echo("\n".join(summary_of(result)))
    try:
        click.echo(f"{write_result(result, output)}\n{write_report(result, output)}")
    except OSError as error:
        click.echo(f"{output} cannot be written: {reason(error)}", err=True)
        sys.exit(_INVALID)
    sys.exit(_INVALID if not result.valid else 0 if result.objective_met else _MISSED)


def _options(url: str, given: dict[str, Any]) -> Options:
    target, path = parse_url(url, verify=not given["insecure"])
    model, _, version = (given["model"] or "").partition("/")
    call = CallOptions(
        model=model or None,
        version=version or None,
        path=given["path"] or path,
        field=given["field"],
        headers=given["headers"],
    )
    try:
        objective = parse_objective(given["objective"])
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--objective") from error

    profile = _profile(given)
    rates = Rates(
        duration_s=given["duration"] or _DURATIONS_S[profile],
        warmup_s=_WARMUPS_S[profile] if given["warmup"] is None else given["warmup"],
        rate_per_s=given["rate"],
        peak_per_s=given["peak"] or (given["rate"] or 0) * _PEAK or None,
        clients=given["clients"],
    )
    if profile != "spike":
        rates = replace(rates, peak_per_s=None)
    return Options(
        url=hide_in_url(url),
        target=target,
        body=given["body"],
        call=call,
        profile=profile,
        rates=rates,
        objective=objective,
        poisson=given["arrivals"] == "poisson",
        timeout_s=given["timeout"],
        n_processes=given["processes"],
        pictures_per_request=given["per_request"],
        broken_share=given["broken"],
        seed=given["seed"],
        command=command_line(sys.argv[1:]),
    )


def _profile(given: dict[str, Any]) -> Profile:
    rate, clients = given["rate"], given["clients"]
    profile: Profile = given["profile"] or (
        "ramp" if rate is None and clients is None else "steady"
    )
    if rate is not None and clients is not None:
        raise click.UsageError("--rate is for an open loop and --clients for a closed one")
    if clients is not None and profile in ("ramp", "spike"):
        raise click.UsageError(f"a {profile} is an open loop; leave --clients out")
    if profile == "spike" and rate is None:
        raise click.UsageError("a spike needs the usual rate: --rate")
    if profile in ("steady", "soak") and rate is None and clients is None:
        raise click.UsageError(f"--profile {profile} needs --rate or --clients")
    if given["peak"] is not None and profile != "spike":
        raise click.UsageError("--peak is for --profile spike")
    return profile


def _load(photos: tuple[Path, ...], given: dict[str, Any]) -> Load:
    try:
        if photos:
            good = read_pictures(photos)
            source = ", ".join(str(path) for path in photos)
        else:
            good = make_pictures(_N_MADE, given["seed"])
            source = f"{len(good)} made from the examples, seed {given['seed']}"
        expected = None
        if given["expect"]:
            expected = match_expected(read_expected(given["expect"]), good)
            if not expected:
                raise ValueError(f"{given['expect']} names none of the {len(good):,} pictures")
        broken = break_pictures(good, _N_BROKEN, given["seed"]) if given["broken"] else []
    except (ValueError, OSError) as error:
        raise click.UsageError(str(error)) from error
    # Folders are often classes; their pictures should not come in one go.
    Random(given["seed"]).shuffle(good)  # noqa: S311 - nothing secret
    return Load(good, broken, source, expected)


@contextmanager
def _stopped_by_ctrl_c(test: LoadTest) -> Iterator[None]:
    """The first Ctrl-C ends the load test early, with its result; the second ends the command."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        test.stop()

    before = signal.signal(signal.SIGINT, stop)
    terminate = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, terminate)

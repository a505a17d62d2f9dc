"""`convserve loadtest compare`: says what changed between results, and whether beyond noise."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import click
from pydantic import ValidationError

from convserve.commands.options import UserPath, reason
from convserve.commands.table import table
from convserve.loadtest.compare.comparison import Comparison, Measure, compare
from convserve.loadtest.report import numbers
from convserve.loadtest.results import FILE, Result, read_result

_LINE: Final = 96
_WORSE: Final = 1  # exit statuses
_INVALID: Final = 3


@click.command("compare")
@click.argument("a", type=UserPath())
@click.argument("b", type=UserPath())
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def compare_command(a: Path, b: Path, *, as_json: bool) -> None:
    """Say what changed from A to B, and whether it is more than noise.

    A and B are each a result.json, a folder with one, or a folder with such folders: several runs.
    With several runs on a side, differences between runs count as noise too.

    The exit status is 0 if nothing is worse, 1 if something is worse beyond noise, and 3 if a result
    is invalid or the load differs, so that nothing can be compared.
    """
    sides = _read("A", a), _read("B", b)
    comparison = compare(*sides)
    if as_json:
        click.echo(comparison.model_dump_json(indent=1))
    else:
        click.echo("\n".join(_lines(comparison, {"A": (a, sides[0]), "B": (b, sides[1])})))

    if comparison.invalid or not comparison.comparable:
        sys.exit(_INVALID)
    sys.exit(_WORSE if comparison.worse else 0)


def _read(name: str, path: Path) -> list[Result]:
    files = [path]
    if path.is_dir():
        files = [path / FILE] if (path / FILE).is_file() else sorted(path.glob(f"*/{FILE}"))
    if not files:
        raise click.BadParameter(f"{path}: no {FILE} in it or its folders", param_hint=name)
    results = []
    for file in files:
        try:
            results.append(read_result(file))
        except OSError as error:
            raise click.BadParameter(f"{file}: {reason(error)}", param_hint=name) from error
        except (ValidationError, ValueError) as error:
            message = f"{file} is not the result of a load test, or of another version of it"
            raise click.BadParameter(message, param_hint=name) from error
    return results


def _lines(
    comparison: Comparison, sides: dict[str, tuple[Path, Sequence[Result]]]
) -> Iterator[str]:
    for name, (path, results) in sides.items():
        first = results[0]
        runs = numbers.count(len(results), "run")
        facts = [runs, f"{first.started_at:%Y-%m-%d %H:%M %Z}".strip(), first.server.software or ""]
        yield f"{name}  {path} ({', '.join(fact for fact in facts if fact)})"

    for complaint in comparison.invalid:
        yield f"INVALID {complaint}"
    if comparison.mismatches:
        rows = [
            ["", one.name, one.a, one.b, "prevents a comparison" if one.prevents else ""]
            for one in comparison.mismatches
        ]
        yield from ("", "Not the same:", *table([["", "", "A", "B", ""], *rows], "<<<<<"))

    header = ["", "A", "B", "B / A", "99% interval", ""]
    yield from ("", *table([header, *map(_row, comparison.measures)], "<>>>><"), "")
    closing = f"{comparison.noise} The intervals of five measures hold together with 95%."
    yield from textwrap.wrap(closing, _LINE)


def _row(measure: Measure) -> list[str]:
    ratio = "-" if measure.ratio is None else f"{measure.ratio:.3f}"
    cells = [_value(measure, measure.a), _value(measure, measure.b), ratio, _interval(measure)]
    words = measure.words.upper() if measure.verdict == "worse" else measure.words
    return [measure.name, *cells, words]


def _value(measure: Measure, value: float | None) -> str:
    if measure.unit == "share":
        return numbers.percent(value or 0.0)
    if value is None:
        return numbers.NO_ANSWER
    return f"{numbers.figures(value)}/s" if measure.unit == "/s" else f"{numbers.in_ms(value)} ms"


def _interval(measure: Measure) -> str:
    if measure.interval is None:
        return "-"
    low, high = measure.interval
    if measure.ratio is None and measure.unit != "share":
        return "-"  # of an unanswered percentile
    if measure.unit == "share":
        # Ends of a share's interval are always known.
        return f"{100 * (low or 0):+.2f} to {100 * (high or 0):+.2f} points"
    if low is None and high is None:
        return "-"
    if low is None:
        return f"up to {high:.3f}"
    return f"{low:.3f} or more" if high is None else f"{low:.3f} to {high:.3f}"

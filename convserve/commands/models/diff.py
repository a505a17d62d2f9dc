"""`convserve models diff`: says how two versions differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any, Final

import click

from contract.comparison import OUTCOMES
from contract.manifest import Measured
from convserve.commands.options import (
    UserPath,
    choose_version,
    errors_as_messages,
    models_option,
    provider_option,
    reason,
)
from convserve.commands.table import table
from convserve.pictures import image_files
from convserve.versions.answers import AnswerDifference, ChangedAnswer, ChangedLabels
from convserve.versions.difference import Difference, LabelDifference, difference
from convserve.versions.facts import Fact
from convserve.versions.speed import SpeedDifference, Spread

_MAX_NAMED: Final = 10  # labels or files
_MAX_ROWS: Final = 20  # changed answers
_LONGEST: Final = 32  # characters of a cell
_MUCH_TOO_LONG: Final = 60
_WORDS: Final = {
    "top1_percent": "top-1",
    "top5_percent": "top-5",
    "n_images": "pictures",
    "dataset": "data",
    "ece_percent": "calibration error (ECE)",
    "version_bytes": "all files",
    "graph_bytes": "graph file",
}
_GROUPS_OF_CHANGES: Final = ("preprocessing", "graph")  # what is the same is left out


@click.command()
@click.argument("versions", nargs=2, metavar="A B")
@click.argument("pictures", type=UserPath(), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every changed answer.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, max=3600),
    default=4,
    show_default=True,
    help="Time for measuring the speed; 0 leaves it out.",
)
@models_option
@provider_option
def diff(
    versions: tuple[str, str],
    pictures: Path | None,
    *,
    as_json: bool,
    seconds: float,
    models_dir: Path,
    provider: str,
) -> None:
    """Say how version B differs from version A.

    A and B are NAME/VERSION, or NAME for its newest version. Both are verified as the service does
    before it serves them. Compared are labels, metrics, preprocessing, graph, size, and the speed on
    this machine.

    With PICTURES, a folder or a file, their answers are compared too. If sub-folders are named after
    classes, so is the accuracy. Pictures that cannot be decoded are listed and left out.

    The exit status is 0 also if the versions differ.
    """
    keys = choose_version(models_dir, versions[0]), choose_version(models_dir, versions[1])
    files = _files(pictures)
    try:
        with errors_as_messages():
            found = difference(models_dir, keys, pictures, files, seconds, provider)
    except OSError as error:
        raise click.ClickException(f"{error.filename or models_dir}: {reason(error)}") from error
    click.echo(_as_json(found) if as_json else "\n".join(_lines(found, pictures)))


def _files(pictures: Path | None) -> list[Path]:
    if pictures is None:
        return []
    if not pictures.exists():
        raise click.ClickException(f"{pictures}: no such file or folder")
    files = list(image_files(pictures))
    if not files:
        raise click.ClickException(f"{pictures}: no image files in this folder")
    return files


def _as_json(found: Difference) -> str:
    document = asdict(found)
    del document["facts"]
    for one in found.facts:
        document.setdefault(one.group, {})[one.name] = {"a": one.a, "b": one.b, "same": one.same}
    # `asdict` leaves `Measured` as it is.
    return json.dumps(document, indent=1, default=Measured.model_dump)


def _lines(found: Difference, pictures: Path | None) -> Iterator[str]:
    for name, side in (("A", found.a), ("B", found.b)):
        yield f"{name}  {side}, made {side.created_at[:10]}, digest {side.manifest_sha256[:12]}"
    if found.a.manifest_sha256 == found.b.manifest_sha256:
        yield "A and B are the same version."
    yield from _labels(found)
    yield from _facts(found.facts)
    if found.speed is not None:
        yield from _speed(found.speed, {found.a.provider, found.b.provider})
    if pictures is not None:
        yield from _answers(found, pictures)


def _labels(found: Difference) -> Iterator[str]:
    labels = found.labels
    counts = f"{found.a.n_classes:,} in A, {found.b.n_classes:,} in B, {labels.n_shared:,} in both"
    yield from ("", f"Labels: {counts}")
    if not any((labels.removed, labels.added, labels.renamed, labels.moved)):
        yield "  the same, in the same order"
        return
    yield from _groups(labels)


def _groups(labels: LabelDifference) -> Iterator[str]:
    groups = {
        "removed": [repr(name) for name in labels.removed],
        "added": [repr(name) for name in labels.added],
        "renamed": [f"{old!r} to {new!r}" for old, new in labels.renamed.items()],
        "another index": [f"{name!r} {old} to {new}" for name, (old, new) in labels.moved.items()],
    }
    for kind, names in groups.items():
        if names:
            yield f"  {kind} ({len(names):,}): {_some(names)}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _facts(every: Sequence[Fact]) -> Iterator[str]:
    same_data = all(fact.same for fact in every if fact.name in ("dataset", "n_images"))
    rows = [["", "", "A", "B", ""]]
    for group, members in groupby(every, key=lambda fact: fact.group):
        shown = [fact for fact in members if not (fact.same and group in _GROUPS_OF_CHANGES)]
        shown = [fact for fact in shown if (fact.a, fact.b) != (None, None)]
        rows += [
            [group if number == 0 else "", *_cells(fact, same_data=same_data)]
            for number, fact in enumerate(shown)
        ]
        if not shown:
            nothing = "none in either" if group == "metrics" else "the same"
            rows.append([group, nothing, "", "", ""])
    yield from ("", *table(rows, "<<>>>"))
    if not same_data:
        yield "The metrics are not of the same pictures."


def _cells(fact: Fact, *, same_data: bool) -> list[str]:
    # Metrics of other pictures are no gain or loss.
    change = _change(fact) if same_data or fact.group != "metrics" else ""
    words = _WORDS.get(fact.name, fact.name.replace("_", " "))
    return [words, *_distinct(_value(fact, fact.a), _value(fact, fact.b)), change]


def _distinct(a: str, b: str) -> tuple[str, str]:
    if max(len(a), len(b)) <= _MUCH_TOO_LONG:
        return a, b
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    same = sum(1 for _ in pairs)
    if a != b and same >= _LONGEST - 3:  # they differ at their end only
        a, b = (f"...{text[same - 8 :]}" for text in (a, b))
    return _cut(a), _cut(b)


def _value(fact: Fact, value: Any) -> str:
    if value is None:
        return "-"
    if fact.name.endswith("_percent") or fact.name == "standard_error":
        return f"{value:.2f}%"
    if fact.name.endswith("_bytes"):
        return f"{value / 1e6:,.2f} MB" if value >= 1e6 else f"{value / 1e3:,.1f} kB"
    if fact.name == "sha256":
        return f"{value[:12]}"
    if isinstance(value, (list, tuple)):
        return ", ".join("N" if one is None else str(one) for one in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _change(fact: Fact) -> str:
    if fact.same or fact.a is None or fact.b is None:
        return ""
    if fact.name.endswith("_percent"):
        return f"{fact.b - fact.a:+.2f} points"
    if fact.name.endswith("_bytes"):
        percent = f"{100 * (fact.b / fact.a - 1):+.1f}"
        return f"{percent}%" if float(percent) else f"{fact.b - fact.a:+,} bytes"
    return ""


def _speed(speed: SpeedDifference, providers: Iterable[str]) -> Iterator[str]:
    rows = [
        ["", "A", "B"],
        ["ms per picture", *(_spread(one.milliseconds) for one in (speed.a, speed.b))],
        ["CPU ms per picture", *(_spread(one.cpu_seconds, 1e3) for one in (speed.a, speed.b))],
    ]
    yield from ("", *table(rows, "<>>"))
    ratio = speed.ratio
    yield f"B takes {ratio.median:.2f} times as long as A ({ratio.low:.2f} to {ratio.high:.2f})."
    yield (
        f"Measured on this machine ({', '.join(sorted(providers))}, one thread), in turns: n = {speed.n} "
        f"each, {speed.n_pictures} pictures, decoded, prepared and run; median (middle half)."
    )


def _spread(one: Spread, factor: float = 1.0) -> str:
    return f"{factor * one.median:.3g} ({factor * one.low:.3g} to {factor * one.high:.3g})"


def _answers(found: Difference, pictures: Path) -> Iterator[str]:
    yield ""
    if found.answers is None:
        yield f"Answers: none of the {len(found.refused):,} files in {pictures} can be decoded"
    else:
        activation = next(fact for fact in found.facts if fact.name == "activation")
        yield from _agreement(found.answers, activation)
        if "sigmoid" not in (activation.a, activation.b):
            yield from _accuracy(found.answers)
        yield from _changed(found.answers.changed, pictures)
    if found.refused:
        yield from ("", f"Not decoded ({len(found.refused):,}):")
        refused = [f"  {file}: {why}" for file, why in found.refused.items()]
        yield from refused[:_MAX_NAMED]
        if len(refused) > _MAX_NAMED:
            yield f"  and {len(refused) - _MAX_NAMED:,} more"


def _agreement(answers: AnswerDifference, activation: Fact) -> Iterator[str]:
    share = answers.agreement_percent
    outcome = OUTCOMES[activation.a if activation.same else "softmax"]
    yield (
        f"Answers: {answers.n_same:,} of {answers.n:,} pictures have the same {outcome}, "
        f"{share.value:.2f}% ({share.low:.2f} to {share.high:.2f})"
    )
    if answers.max_probability_change is None:
        yield (
            f"  A is {activation.a}, B is {activation.b}, so their probabilities mean different things: "
            "only the first classes are compared"
        )
        return

    change = f"{answers.max_probability_change:.3g}"
    if answers.mean_kl is None:
        yield f"  largest change of a probability {change}; no mean KL, since the classes differ"
    else:
        kl = answers.mean_kl
        yield (
            f"  largest change of a probability {change}; mean KL {kl.value:.3g} nats "
            f"({kl.low:.3g} to {kl.high:.3g})"
        )


def _accuracy(answers: AnswerDifference) -> Iterator[str]:
    one = answers.accuracy
    if one is None:
        yield "  accuracy unknown: no picture is in a sub-folder named after a class of both"
        return
    difference_ = one.difference_percent
    yield (
        f"  top-1 on {one.n:,} pictures with a known class: A {one.a_percent:.2f}%, "
        f"B {one.b_percent:.2f}%, {difference_.value:+.2f} points ({difference_.low:+.2f} to "
        f"{difference_.high:+.2f})"
    )
    if answers.n_other_class:
        yield f"  {answers.n_other_class:,} more pictures are of classes that only one version has"


def _changed(changed: Sequence[ChangedAnswer | ChangedLabels], pictures: Path) -> Iterator[str]:
    if not changed:
        return
    rows, alignment = [["", "class", "A says", "", "B says", ""]], "<<<><>"
    if isinstance(changed[0], ChangedLabels):
        rows, alignment = [["", "", "label", "A", "B"]], "<<<>>"
    for one in changed[:_MAX_ROWS]:
        rows += _rows(one, _end(_relative(one.file, pictures)))
    yield from ("", *table(rows, alignment))
    if len(changed) > _MAX_ROWS:
        yield f"and {len(changed) - _MAX_ROWS:,} more; --json lists all"


def _rows(one: ChangedAnswer | ChangedLabels, file: str) -> list[list[str]]:
    if isinstance(one, ChangedAnswer):
        says = [cell for x in (one.a, one.b) for cell in (_cut(x.label), f"{x.probability:.4f}")]
        return [[file, _cut(one.label or "-"), *says]]

    changes = [("gained", label) for label in one.gained] + [("lost", label) for label in one.lost]
    rows = [
        ["" if number else file, kind, _cut(label.label), f"{label.a:.4f}", f"{label.b:.4f}"]
        for number, (kind, label) in enumerate(changes[:_MAX_NAMED])
    ]
    if len(changes) > _MAX_NAMED:
        rows.append(["", "", f"and {len(changes) - _MAX_NAMED:,} more", "", ""])
    return rows


def _end(text: str) -> str:
    return text if len(text) <= _LONGEST else f"...{text[3 - _LONGEST :]}"


def _relative(file: str, pictures: Path) -> str:
    path = Path(file)
    return path.relative_to(pictures).as_posix() if path != pictures else path.name

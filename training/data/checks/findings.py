"""What the checks of a data set found, as text for the terminal and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from training.data.samples import SPLITS

Severity = Literal["stop", "warning", "note"]

LEAK_CODES: Final = frozenset({"exact_across", "near_across"})

_EXAMPLES: Final = 5
_NAMES: Final = 4
_ROWS: Final = 20
_INDENT: Final = " " * 9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        severity: `stop` cannot be trained on, `warning` deserves a look, `note` is for the record.
        code: stable, snake_case.
        message: one sentence with the count.
        advice: what was done, or what to do about it.
        items: everything concerned, each of one or more strings that belong together.
        joiner: between the strings of an item.
    """

    severity: Severity
    code: str
    message: str
    advice: str = ""
    items: tuple[tuple[str, ...], ...] = ()
    joiner: str = ": "


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was found in a data set.

    Attributes:
        name: of the data set.
        labels: C names.
        counts: for each split its readable pictures of each class, as they are trained on.
        items: the findings, the gravest first.
    """

    name: str
    labels: tuple[str, ...] = ()
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    items: tuple[Finding, ...] = ()

    @property
    def stops(self) -> tuple[Finding, ...]:
        """What makes training impossible."""
        return tuple(one for one in self.items if one.severity == "stop")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What deserves a look."""
        return tuple(one for one in self.items if one.severity == "warning")

    def to_json(self) -> dict[str, Any]:
        """Returns name, counts and all findings with their full lists, ready for `json.dumps`.

        Bytes of file names that are no UTF-8 come escaped.
        """
        return {
            "name": _encodable(self.name),
            "counts": {
                split: dict(zip(self.labels, row, strict=True))
                for split, row in self.counts.items()
            },
            "findings": [
                {
                    "severity": one.severity,
                    "code": one.code,
                    "message": _encodable(one.message),
                    "advice": one.advice,
                    "count": len(one.items),
                    "items": [[_encodable(text) for text in item] for item in one.items],
                }
                for one in self.items
            ],
        }


def render(findings: Findings) -> str:
    """Returns the findings for a terminal, with at most five examples each."""
    lines = _table(findings)
    for one in findings.items:
        severity = "STOP" if one.severity == "stop" else one.severity
        lines += ["", f"{severity:<9}{printable(one.message)}"]
        lines += [f"{_INDENT}  {_item(item, one.joiner)}" for item in one.items[:_EXAMPLES]]
        if len(one.items) > _EXAMPLES:
            lines.append(f"{_INDENT}  and {len(one.items) - _EXAMPLES} more")
        if one.advice:
            lines.append(f"{_INDENT}-> {printable(one.advice)}")
    n_stops, n_warnings = len(findings.stops), len(findings.warnings)
    verdict = "cannot be trained on" if n_stops else "can be trained on"
    lines += ["", f"{printable(findings.name)} {verdict}; stops: {n_stops}, warnings: {n_warnings}"]
    return "\n".join(lines)


def printable(text: str) -> str:
    """Returns text without control characters, which file names may hold, and undecodable bytes."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _item(item: tuple[str, ...], joiner: str) -> str:
    more = f"{joiner}{len(item) - _NAMES} more" if len(item) > _NAMES else ""
    return printable(joiner.join(item[:_NAMES]) + more)


def _table(findings: Findings) -> list[str]:
    splits = [split for split in SPLITS if split in findings.counts]
    columns = [findings.counts[split] for split in splits]
    total = sum(map(sum, columns))
    lines = [f"{printable(findings.name)}: {total} pictures of {len(findings.labels)} classes", ""]
    rows = list(zip(map(printable, findings.labels), *columns, strict=True))
    shown = rows if len(rows) <= _ROWS else sorted(rows, key=lambda row: row[1])[:_ROWS]
    width = max(5, *(len(label) for label, *_ in shown)) if shown else 5
    lines.append(f"  {'label':<{width}}" + "".join(f"{split:>12}" for split in splits))
    lines += [f"  {label:<{width}}" + "".join(f"{n:>12}" for n in row) for label, *row in shown]
    if len(rows) > _ROWS:
        lines.append(f"  and {len(rows) - _ROWS} larger classes")
    return [*lines, f"  {'all':<{width}}" + "".join(f"{sum(column):>12}" for column in columns)]

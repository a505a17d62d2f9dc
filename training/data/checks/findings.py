"""The findings of a data check, as text for the terminal and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from training.data.samples import SPLITS

Severity = Literal["stop", "warning", "note"]

LEAK_CODES: Final = frozenset({"exact_across", "near_across"})

# Limits of what a terminal shows; the JSON has it all.
_EXAMPLES: Final = 5  # of a finding
_NAMES: Final = 4  # in a group of copies
_ROWS: Final = 20  # of the table of classes
_INDENT: Final = " " * 9


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: a stop makes training impossible, a warning needs a look, a note is for the record."""

    severity: Severity
    code: str  # stable, snake_case
    message: str  # what was found, with the count
    advice: str = ""  # what was done about it, or what to do
    items: tuple[tuple[str, ...], ...] = ()  # a file and a reason, or the names of equal pictures
    joiner: str = ": "  # between the strings of an item


@dataclass(frozen=True, slots=True)
class Findings:
    """All findings of a data set, and how many pictures of each class are used."""

    name: str
    labels: tuple[str, ...] = ()
    counts: dict[str, tuple[int, ...]] = field(default_factory=dict)  # by split, in label order
    items: tuple[Finding, ...] = ()  # the most severe first

    @property
    def stops(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.items if one.severity == "stop")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.items if one.severity == "warning")

    def to_json(self) -> dict[str, Any]:
        """Returns name, counts and all findings with their full lists, ready for `json.dumps`.

        File names that are not valid UTF-8 are escaped.
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
    """Returns the findings as text for a terminal, with at most five examples each."""
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
    """Escapes control characters and undecodable bytes, which file names may contain."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def counted(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _item(item: tuple[str, ...], joiner: str) -> str:
    more = f"{joiner}{len(item) - _NAMES} more" if len(item) > _NAMES else ""
    return printable(joiner.join(item[:_NAMES]) + more)


def _table(findings: Findings) -> list[str]:
    splits = [split for split in SPLITS if split in findings.counts]
    columns = [findings.counts[split] for split in splits]
    total = sum(map(sum, columns))

    classes = counted(len(findings.labels), "class", "classes")
    lines = [f"{printable(findings.name)}: {counted(total, 'picture')} of {classes}", ""]
    rows = list(zip(map(printable, findings.labels), *columns, strict=True))
    # The smallest classes are the ones in trouble.
    shown = rows if len(rows) <= _ROWS else sorted(rows, key=lambda row: row[1])[:_ROWS]

    width = max(5, *(len(label) for label, *_ in shown)) if shown else 5
    lines.append(f"  {'label':<{width}}" + "".join(f"{split:>12}" for split in splits))
    lines += [f"  {label:<{width}}" + "".join(f"{n:>12}" for n in row) for label, *row in shown]
    if len(rows) > _ROWS:
        lines.append(f"  and {len(rows) - _ROWS} larger classes")

    return [*lines, f"  {'all':<{width}}" + "".join(f"{sum(column):>12}" for column in columns)]

"""Tables in plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def table(rows: Sequence[Sequence[str]], alignment: str) -> Iterator[str]:
    """Yields the lines of a table.

    Args:
        rows: cells, the same number in each row.
        alignment: one of `<`, `>` and `^` for each column.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, alignment, widths, strict=True)
        yield "  ".join(f"{cell:{side}{width}}" for cell, side, width in cells).rstrip()

"""The classes as a file gives them, and their order.

Files of other tools often number their classes. The numbers decide the order then, not the lines. A file
whose numbers cannot be class indexes is refused, since its order may be wrong too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

SYNSET: Final = re.compile(r"n\d{8}")


@dataclass(frozen=True, slots=True)
class Row:
    """A class as the file gives it; `index` is None where the file does not number its classes."""

    name: str
    synset: str | None = None
    index: int | None = None


def in_order(rows: list[Row]) -> list[Row]:
    found = [row.index for row in rows if row.index is not None]
    if not found:
        return rows
    if len(found) < len(rows):
        raise ValueError(f"{len(found)} of {len(rows)} classes have an id; number all or none")
    if not _is_complete(found):
        raise ValueError(
            f"the ids must be 0, 1, 2, ... without a gap, but they are {listed(found)}; a network's "
            f"first score has the index 0"
        )
    by_index = {row.index: row for row in rows}
    return [by_index[index] for index in range(len(rows))]


def may_be_ids(indexes: list[int]) -> bool:
    # Numbers from 1 are ids too; `in_order` refuses them.
    return _is_complete(indexes) or _is_complete(index - 1 for index in indexes)


def _is_complete(indexes: Iterable[int]) -> bool:
    found = sorted(indexes)
    return found == list(range(len(found)))


def listed(indexes: Sequence[int]) -> str:
    shown = ", ".join(map(str, indexes[:4]))
    return f"{shown}, ..." if len(indexes) > 4 else shown

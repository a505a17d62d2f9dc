"""HTML text that escapes whatever is put into it, unless it is HTML already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

_VOID = frozenset({"img", "br"})


class Markup(str):
    """Text that is HTML; only `element` and `join` make it, apart from constants of ours."""

    __slots__ = ()


def element(name: str, *children: object, **attributes: object) -> Markup:
    """Returns one element.

    Args:
        name: of the tag.
        children: `Markup` stays as it is; the text of anything else is escaped.
        attributes: values are escaped; `class_` is written `class`, other underscores become
            hyphens, and a value of None or False leaves the attribute out.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{pairs}>")
    return Markup(f"<{name}{pairs}>{join(*children)}</{name}>")


def join(*children: object) -> Markup:
    """Returns the children side by side, each escaped unless it is `Markup`."""
    return Markup(
        "".join(
            str(child) if isinstance(child, Markup) else escape(str(child)) for child in children
        )
    )


def table(
    header: Sequence[str], rows: Iterable[Sequence[object]], caption: str, *, n_text: int = 1
) -> Markup:
    """Returns a table whose first column heads its rows.

    Args:
        header: of each column.
        rows: cells, as the children of `element`.
        caption: above the table.
        n_text: columns of text; the others are numbers and stand to the right.
    """
    sides = [None if i < n_text else "number" for i in range(len(header))]
    head = [
        element("th", text, scope="col", class_=side)
        for text, side in zip(header, sides, strict=True)
    ]
    body = [element("tr", *_cells(row, sides)) for row in rows]
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *head)),
        element("tbody", *body),
    )
    return element("div", content, class_="scroll", tabindex=0, role="region", aria_label=caption)


def _cells(row: Sequence[object], sides: Sequence[str | None]) -> Iterator[Markup]:
    for place, (cell, side) in enumerate(zip(row, sides, strict=True)):
        if place:
            yield element("td", cell, class_=side)
        else:
            yield element("th", cell, scope="row", class_=side)

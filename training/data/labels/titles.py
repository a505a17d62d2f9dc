"""The titles under which tables and JSON give a class, its index and its synset."""

from __future__ import annotations

import re
from typing import Final

# Titles of columns and members, as `as_title` returns them. pandas gives its index the last two.
ID_NAMES: Final = (
    *("id", "index", "idx", "classid", "classindex", "classidx", "labelid"),
    *("", "unnamed:0"),
)
NAME_NAMES: Final = (
    *("name", "classname", "labelname", "displayname", "label", "class", "description"),
)
SYNSET_NAMES: Final = ("synset", "wnid", "synsetid", "wordnetid")


def as_title(text: str) -> str:
    return re.sub(r"[\s_-]", "", text).lower()  # ClassName, class_name, class name

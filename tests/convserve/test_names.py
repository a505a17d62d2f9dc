"""Public names contain none of the project's former private metaphors."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("contract", "convserve", "service", "training")
OUT = {
    "seat", "member", "crew", "recruiter", "vitals", "condemned", "excuse", "doubtful", "shelf", "width",
}  # fmt: skip
# Pictures and layers have a width. Elsewhere the word stood for the number of threads of a run.
WIDTH_IS_THE_FIELDS_WORD = ("contract/images/", "training/networks/")


def words_of(name: str) -> set[str]:
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", name)
    lower = {part.lower() for part in parts}
    return lower | {part.removesuffix("s") for part in lower}


def public_names(path: Path) -> Iterator[str]:
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (one.id for one in targets if isinstance(one, ast.Name) and one.id.isupper())
            yield from (one.attr for one in targets if isinstance(one, ast.Attribute))


def private_words(path: Path) -> set[str]:
    relative = path.relative_to(ROOT).as_posix()
    out = OUT - ({"width"} if relative.startswith(WIDTH_IS_THE_FIELDS_WORD) else set())
    names = (name for name in public_names(path) if not name.startswith("_"))
    return {name for name in names if words_of(name) & out}


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_have_no_private_words(package):
    found = {
        path.relative_to(ROOT).as_posix(): names
        for path in (ROOT / package).rglob("*.py")
        if (names := private_words(path))
    }

    assert found == {}


def test_private_words_are_found_where_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    module = tmp_path / "recruiters.py"
    module.write_text("class DoubtfulRun:\n    def _seat(self):\n        self.vitals = 1\n")

    assert private_words(module) == {"recruiters", "DoubtfulRun", "vitals"}

import ast
from pathlib import Path

import pytest

from contract.images import DECODERS, SUFFIXES, is_image_name
from contract.images.suffixes import SUFFIXES_OF

LOCUSTFILE = Path(__file__).parents[3] / "loadtest" / "locustfile.py"


def test_every_format_has_suffixes():
    names = [decoder.name for decoder in DECODERS]
    assert [name for name in SUFFIXES_OF if name in names] == names
    assert all(SUFFIXES_OF.values())


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "A.JPG",
        "a.jfif",
        "a.pjp",
        "a.PJPEG",
        "a.JPE",
        "b.c.Png",
        "a.dib",
        "IMG_0001.HEIC",
        "a.avif",
    ],
)
def test_image_name_is_known_in_any_case(name):
    assert is_image_name(name)
    assert is_image_name(Path("folder") / name)


@pytest.mark.parametrize("name", ["a.txt", "jpg", ".jpg", "a.jpg.part", "a"])
def test_other_name_is_no_image_name(name):
    assert not is_image_name(name)


def test_formats_whose_decoder_is_not_installed_have_suffixes_too():
    assert {"heic", "avif"} <= set(SUFFIXES_OF)


def test_locustfile_searches_for_the_same_suffixes():
    # It runs in an environment without the service, so it has a table of its own.
    tree = ast.parse(LOCUSTFILE.read_text(encoding="utf-8"))
    strings = {
        node.value
        for statement in tree.body
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == "_SUFFIXES"
        for node in ast.walk(statement)
        if isinstance(node, ast.Constant)
    }

    assert strings == set(SUFFIXES)
